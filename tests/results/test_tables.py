"""A benchmark's tables, and which published figures stand in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfa_cli.config import PRESETS, FitConfig
from cfa_cli.results.benchmark import Evaluation, Results
from cfa_cli.results.tables import markdown, remarks, tables

PUBLISHED = Path(__file__).parents[2] / "cfa_cli/results/published/mvtec_cfa.json"


def published(category: str, backbone: str = "resnet18", seed: int = 0, **figures: object) -> Evaluation:
    values = {
        "image_auroc": 0.9, "image_f1max": 0.9, "pixel_auroc": 0.9, "aupro": 0.9, "pixel_f1max": 0.5,
        "weights": f"imagenet: {backbone}.tv_in1k", "input_size": (224, 224),
    }  # fmt: skip
    return Evaluation(
        backbone=backbone, seed=seed, category=category, threshold=1.0, fpr=0.0, recall=1.0, f1=0.9, train_images=9,
        holdout_images=2, test_good=3, test_anomalous=3, fit_seconds=1.0, milliseconds=5.0, peak_memory_mb=None,
        peak_device_memory_mb=None, device="cpu", weights_sha256="", data_sha256="", warnings=(),
        **(values | figures),
    )  # fmt: skip


def results_of(*runs: Evaluation, dataset: str = "MVTec AD") -> Results:
    return Results(dataset, FitConfig(), runs, (), {"cfa": "0"})


def test_published_figures_stand_beside_ours():
    # Published, resnet18: bottle 0.991, screw 0.625 (mean 0.808); ours: (0.98 + 1) / 2 and 0.9 (mean 0.945).
    bottles = published("bottle", image_auroc=0.98), published("bottle", seed=1, image_auroc=1.0)
    results = results_of(*bottles, published("screw", seed=0))
    overview, comparison, *_ = tables(results)
    assert overview.rows[0][:2] == ("bottle", "0.990±0.014")
    assert overview.header[6:9] == ("FPR @t", "recall @t", "F1 @t")
    assert overview.rows[1][6:9] == ("0.000", "1.000", "0.900")
    assert comparison.header == ("category", "resnet18", "anomalib", "difference")
    assert comparison.rows == (
        ("bottle", "0.990±0.014", "0.991", "-0.001"),
        ("screw", "0.900", "0.625", "+0.275"),
        ("average", "0.945", "0.808", "+0.137"),  # without a spread: seed 1 lacks a category
    )
    assert "its validation set is the test set" in comparison.notes[0]
    assert remarks(results) == []


def test_what_differs_from_the_published_recipe_is_said():
    paper = replace(results_of(published("bottle")), config=PRESETS["paper"])
    assert tables(paper)[0].notes[0] == "Recipe: 224 x 224 px, --preset paper."
    ours = replace(paper, config=replace(PRESETS["default"], seed=3))
    assert tables(ours)[0].notes[0] == "Recipe: 224 x 224 px, --preset default."
    shorter = replace(paper, config=replace(PRESETS["paper"], epochs=2, gamma_d=4))
    difference = "224 x 224 px, --preset paper but for gamma_d 4 (not 1), epochs 2 (not 30)."
    overview, comparison, *_ = tables(shorter)
    assert overview.notes[0] == f"Recipe: {difference}"
    assert comparison.notes[-1].startswith(f"Ours: {difference.rstrip('.')}; ")


AUTHORS = {"R": ((256, 256), None), "R+C": ((256, 256), (224, 224))}


@pytest.mark.parametrize("way", AUTHORS)
def test_the_authors_columns_stand_beside_their_own_input_alone(way):
    size, crop = AUTHORS[way]
    wide = published("cable", "wide_resnet50_2", image_auroc=0.99, input_size=crop or size)
    results = replace(results_of(wide), config=replace(PRESETS["paper"], size=size, crop=crop))
    comparison = next(table for table in tables(results) if table.title == "image AUROC")
    document = json.loads(PUBLISHED.read_text())["authors_wide_resnet50_2"]
    figure = document["resize" if way == "R" else "resize_and_crop"]["cable"]["image_auroc"]
    assert comparison.header == ("category", "wide_resnet50_2", f"authors† ({way})", "difference")
    assert comparison.rows[0][1:] == ("0.990", f"{figure:.3f}", f"{0.99 - figure:+.3f}")
    notes = " ".join(comparison.notes)
    for what in (
        "best over 30 epochs as measured on the test set",
        "80% of the good",
        "Lanczos",
        "leaky ReLU",
        "batch",
    ):
        assert what in notes
    f1 = next(table for table in tables(results) if table.title == "image F1-max")
    assert "authors" not in "".join(f1.header)
    (left_out,) = remarks(results)
    assert "anomalib --size 224" in left_out


def test_the_papers_size_compares_with_anomalib_and_the_ways_to_the_authors_are_told():
    wide = published("bottle", "wide_resnet50_2", image_auroc=0.999)
    for config in (PRESETS["paper"], FitConfig()):  # the images' aspect leads to the same input
        results = replace(results_of(wide), config=config)
        comparison = next(table for table in tables(results) if table.title == "image AUROC")
        assert comparison.header == ("category", "wide_resnet50_2", "anomalib", "difference")
        (left_out,) = remarks(results)
        assert "(R) --size 256" in left_out
        assert "(R+C) --size 256 --crop 224" in left_out


@pytest.mark.parametrize(
    ("size", "crop", "input_size"),
    [
        ((96, 96), None, (96, 96)),
        ((256, 256), (200, 200), (200, 200)),
        ((300, 300), (224, 224), (224, 224)),
        ((224, 224), (224, 224), (224, 224)),
        (None, None, (192, 256)),
    ],
)
def test_figures_of_another_input_size_have_no_published_ones_beside_them(size, crop, input_size):
    runs = [published("bottle", backbone, input_size=input_size) for backbone in ("resnet18", "wide_resnet50_2")]
    results = replace(results_of(*runs), config=replace(PRESETS["paper"], size=size, crop=crop))
    assert "difference" not in markdown(results)
    assert len([line for line in remarks(results) if "other input sizes" in line]) == 2


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        (results_of(published("bottle", weights="embedded")), "theirs come from the ImageNet weights"),
        (results_of(published("bottle", "vgg19_bn")), "no published figures of CFA with vgg19_bn"),
        (results_of(published("bottle"), dataset="mine/"), "of MVTec AD, these are of mine/"),
    ],
)
def test_published_figures_that_do_not_compare_are_left_out(results, reason):
    assert "anomalib" not in markdown(results)
    assert len(tables(results)) == 1
    assert reason in "".join(remarks(results))


def test_undefined_metrics_are_no_figures():
    results = results_of(published("a", aupro=None), published("b", aupro=0.5), dataset="mine/")
    (overview,) = tables(results)
    column = [row[overview.header.index("AUPRO")] for row in overview.rows]
    assert column == ["-", "0.500", "0.500"]


def test_the_published_table_is_the_one_that_was_published():
    document = json.loads(PUBLISHED.read_text())
    for backbone in ("resnet18", "wide_resnet50_2"):
        categories = [figures for name, figures in document[backbone].items() if name != "average"]
        assert len(categories) == 15
        for metric, mean in document[backbone]["average"].items():
            assert np.mean([figures[metric] for figures in categories]) == pytest.approx(mean, abs=6e-4)
