"""results.html and the samples in it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfa_cli.config import FitConfig
from cfa_cli.records import Prediction, Source
from cfa_cli.results.benchmark import ImageScore, KindFigures, Results
from cfa_cli.results.page import write_results_page
from cfa_cli.results.samples import choose_samples, draw_sample, sample_path
from tests.results.test_tables import published

IMAGES = (
    ImageScore("good/0.png", "good", 0.9, None),
    ImageScore("good/1.png", "good", 0.2, None),
    ImageScore("dent/<b>.png", "dent", 1.5, 0.9),
    ImageScore("dent/1.png", "dent", 3.0, 0.4),
    ImageScore("dent/2.png", "dent", 0.5, 0.7),
)
KINDS = (KindFigures("dent", 3, 2, 5 / 6, 0.66),)


def results_of(category: str = "bottle", images: tuple[ImageScore, ...] = IMAGES) -> Results:
    curve = ((0.0, 0.0, 0.0), (0.15, 0.5, 0.6), (1.0, 1.0, 1.0))
    evaluation = replace(published(category), images=images, kinds=KINDS, curve=curve, command="cfa benchmark <x>")
    return Results("MVTec AD", FitConfig(), (evaluation,), (), {"cfa": "0", "platform": "<i>"})


def test_the_page_has_all_and_needs_nothing(tmp_path):
    picture = np.full((20, 80, 3), 120, np.uint8)
    for sample in ("best", "median", "worst"):
        path = sample_path(tmp_path, "resnet18", 0, "bottle", sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)
    text = write_results_page(tmp_path, results_of()).read_text()
    assert not re.search(r"https?://|<link|src=\"(?!data:)", text)
    assert "default-src 'none'" in text
    assert "dent/&lt;b&gt;.png, score 1.5, AUPRO 0.900" in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert "cfa benchmark &lt;x&gt;" in text
    assert text.count("data:image/jpeg;base64,") == 3
    assert "anomalib" in text  # the published column
    assert "2/3 = 66.7 % (9.4 to 99.2)" in text  # dents caught, by Clopper and Pearson
    roc, pro = re.findall(r'<polyline class="line1" points="([^"]*)"', text)
    # Scores 3.0, 1.5 and 0.5 of three dents, 0.9 and 0.2 of two good images; y points down.
    assert roc == "0.0,100.0 0.0,66.7 0.0,33.3 50.0,33.3 50.0,0.0 100.0,0.0"
    assert pro.startswith("0.0,100.0 50.0,40.0")


def test_samples_are_chosen_by_their_share_of_aupro_or_by_their_score():
    assert choose_samples(IMAGES) == {"best": 2, "median": 4, "worst": 3}
    without = [replace(image, pro=None) for image in IMAGES]
    assert choose_samples(without) == {"best": 3, "median": 2, "worst": 4}
    assert choose_samples(IMAGES[:2]) == {}


def test_a_strangers_results_show_no_file_of_other_places(tmp_path):
    (tmp_path / "secret-best.jpg").write_bytes(b"\xff\xd8 private")
    out = tmp_path / "out"
    (out / "samples" / "resnet18-seed0").mkdir(parents=True)
    text = write_results_page(out, results_of("../../../secret")).read_text()
    assert "data:image" not in text


def test_a_sample_is_image_mask_map_and_overlay(fitted):
    bundle = fitted.bundle
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (90, 60, 3)).astype(np.uint8)
    mask = np.zeros((45, 30), np.uint8)
    mask[20, 10] = 1
    score_map = np.zeros(bundle.geometry.input_size, np.float32)
    prediction = Prediction(Source(Path("a.png"), "a.png"), 0, 0, 1, "good", 1, score_map=score_map, image=image)
    strip = draw_sample(prediction, mask, bundle)
    assert strip.shape == (180, 4 * 120 + 3 * 4, 3)
    truth = strip[:, 124:244]
    assert (truth[80:84, 40:44] == 255).all()
    assert truth.max(axis=2).astype(bool).sum() <= 8 * 8
    keep = np.ones(bundle.geometry.input_size, np.float32)
    keep[:, : keep.shape[1] // 2] = 0  # its left half is ignored
    hatched = draw_sample(replace(prediction, keep=keep), mask, bundle)
    different = (hatched != strip).any(axis=2)
    assert not different[:, :372].any()
    assert different[:, 372:432].mean() > 0.9
    assert not different[:, 434:].any()
    assert (draw_sample(prediction, None, bundle)[:, 124:244] == 0).all()


@pytest.mark.parametrize("images", [(), IMAGES[:2], IMAGES[2:]])
def test_what_is_not_defined_is_not_drawn(tmp_path, images):
    text = write_results_page(tmp_path, results_of(images=images)).read_text()
    assert text.count("<polyline") == 1  # of region overlap alone
