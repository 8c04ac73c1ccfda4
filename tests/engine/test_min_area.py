"""`--min-area`: specks neither make an image anomalous nor are marked, and the thresholds fit scores of that kind."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from cfa_cli import FitConfig, calibrate, fit, predict, save_bundle
from cfa_cli.data.datasets import open_dataset
from cfa_cli.engine.benchmark import benchmark
from cfa_cli.engine.export import export
from cfa_cli.engine.thresholds import choose_threshold, split_holdout, without_min_area
from cfa_cli.errors import UsageError
from cfa_cli.records import Bundle
from tests.conftest import assert_refused, write_part
from tests.engine.trees import make_tree

AREA = 150  # px of parts of 72 x 80 px
CONFIG = FitConfig(weights="embedded", size=(64, 64), epochs=1, max_fpr=0.25, seed=1, normalize_positions=False)


def opened_maximum(score_map: np.ndarray, area: int) -> float:
    """The maximum of the area opening, level by level from the top."""
    for level in np.unique(score_map)[::-1]:
        labels, _ = ndimage.label(score_map >= level, np.ones((3, 3)))
        if np.bincount(labels.ravel())[1:].max() >= area:
            return float(level)
    return float(score_map.min())


@pytest.fixture(scope="module")
def bundle(good_dir: Path) -> Bundle:
    return fit(good_dir, replace(CONFIG, min_area=AREA)).bundle


@pytest.fixture(scope="module")
def plain(good_dir: Path) -> Bundle:
    return fit(good_dir, CONFIG).bundle


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good parts, parts with a defect, and larger ones, in which `AREA` is less of the image."""
    folder = tmp_path_factory.mktemp("parts")
    for number in range(3):
        write_part(folder / f"good{number}.png", 100 + number)
        write_part(folder / f"bad{number}.png", 200 + number, defect=True)
        write_part(folder / f"large{number}.png", 300 + number, defect=number == 0, size=(216, 160))
    return folder


def test_held_out_images_are_scored_as_new_ones_are(bundle: Bundle, plain: Bundle, good_dir: Path) -> None:
    paths = sorted(good_dir.rglob("*.png"))
    held = [paths[index] for index in split_holdout(len(paths), CONFIG.holdout, CONFIG.seed)[1]]
    found = sorted(
        (opened_maximum(prediction.map, AREA), float(prediction.score_map.max()))
        for prediction in predict(bundle, [str(path) for path in held])
    )
    calibration = bundle.calibration
    assert calibration.holdout_scores == pytest.approx([score for score, _ in found], rel=1e-3)
    assert calibration.holdout_peaks == pytest.approx([peak for _, peak in found], rel=1e-3)
    threshold = choose_threshold(calibration.holdout_scores, CONFIG.max_fpr).value
    assert calibration.threshold == calibration.pixel_threshold == threshold < plain.calibration.threshold


def test_an_image_is_anomalous_where_it_has_a_region_of_that_area(bundle: Bundle, plain: Bundle, parts: Path) -> None:
    labels = []
    for prediction in predict(bundle, parts):
        assert prediction.score == pytest.approx(opened_maximum(prediction.map, AREA), rel=1e-6)
        assert (prediction.label == "anomalous") == bool(prediction.regions)
        assert all(region.area >= AREA for region in prediction.regions)
        labels.append(prediction.label)
    assert set(labels) == {"good", "anomalous"}
    for low in (0.5, 1.5):  # a threshold of the caller's moves both
        for prediction in predict(bundle, parts, threshold=low * bundle.calibration.threshold):
            assert (prediction.label == "anomalous") == bool(prediction.regions)
    photo = parts / "good0.png"
    (shown,) = predict(bundle, photo)
    between = (shown.score + float(shown.map.max())) / 2
    (speck,), (whole,) = (predict(model, photo, threshold=between) for model in (plain, bundle))
    assert (speck.label, len(speck.regions)) == ("anomalous", 1)
    assert (whole.label, whole.regions) == ("good", ())


def test_rows_list_the_regions_whatever_is_saved(cfa, bundle: Bundle, parts: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """regions.csv, --json, a stream's lines and Python: the same regions."""
    save_bundle(bundle, tmp_path / "m.safetensors")
    expected = {prediction.source.name: prediction.regions for prediction in predict(bundle, parts)}
    assert sum(map(len, expected.values())) >= 4
    documents = {}
    for save in ("overlay", "none"):
        run = cfa("predict", parts, "--model", "m.safetensors", "--out", save, "--save", save, "--json")
        documents[save] = json.loads(run.out)["results"]
    tables = [Path(save, "regions.csv").read_bytes() for save in ("overlay", "none")]
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(tables[0].decode().splitlines()))
    listed = [
        (Path(row["path"]).name, *(float(value) for name, value in row.items() if name != "path")) for row in rows
    ]
    told = [
        (name, r.left, r.top, r.width, r.height, r.area, *r.centroid, r.peak, *r.peak_at)
        for name, regions in expected.items()
        for r in regions
    ]
    assert [row[0] for row in listed] == [row[0] for row in told]
    np.testing.assert_allclose([row[1:] for row in listed], [row[1:] for row in told], rtol=1e-6)
    for document in documents.values():
        for row in document:
            regions = expected[Path(row["path"]).name]
            assert [r["area"] for r in row["regions"]] == [r.area for r in regions]
            assert [r["peak_at"] for r in row["regions"]] == [list(r.peak_at) for r in regions]


def test_calibrate_changes_the_area_with_new_good_images(bundle: Bundle, tmp_path: Path) -> None:
    for number in range(12):
        write_part(tmp_path / f"{number}.png", 400 + number)
    with pytest.raises(UsageError, match="needs new good images in place of the hold-out") as refused:
        calibrate(bundle, tmp_path, min_area=40)
    assert "--replace" in refused.value.hint
    for min_area in (0, 1.5):
        with pytest.raises(UsageError, match="min_area"):
            calibrate(bundle, tmp_path, min_area=min_area, replace_holdout=True)
    found = calibrate(bundle, tmp_path, min_area=40, replace_holdout=True)
    calibration = found.bundle.calibration
    maps = [prediction.map for prediction in predict(bundle, tmp_path)]
    assert calibration.min_area == 40
    assert calibration.holdout_scores == pytest.approx(sorted(opened_maximum(m, 40) for m in maps), rel=1e-5)
    assert bundle.calibration.threshold not in [row.threshold for row in found.evidence.table]  # of another area
    added = calibrate(bundle, tmp_path).bundle.calibration
    both = [*bundle.calibration.holdout_scores, *(opened_maximum(m, AREA) for m in maps)]
    assert added.holdout_scores == pytest.approx(sorted(both), rel=1e-5)
    assert added.min_area == AREA


def test_an_export_has_the_thresholds_of_its_own_score(
    bundle: Bundle, plain: Bundle, parts: Path, tmp_path: Path
) -> None:
    """They are those of a fit without --min-area; a threshold that was given stays."""
    found, note = without_min_area(bundle)
    colours = {"display_low": 1.0, "display_high": 2.0}  # their scale is a matter of looks
    assert replace(found.calibration, **colours) == replace(plain.calibration, **colours)
    assert found.holdout == plain.holdout
    assert without_min_area(plain) == (plain, None)
    given = calibrate(bundle, threshold=1.1 * bundle.calibration.threshold).bundle
    kept, why = without_min_area(given)
    assert kept.calibration.threshold == given.calibration.threshold
    over = sum(peak > given.calibration.threshold for peak in plain.calibration.holdout_peaks)
    assert f"{over / 5:.1%} of the held-out images are over it" in why
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    save_bundle(bundle, tmp_path / "m.safetensors")
    result = export(tmp_path / "m.safetensors", tmp_path / "m.onnx", images=parts)
    assert result.note.startswith(note)  # the number type may add to it
    assert f"--min-area {AREA}" in note
    assert f"{plain.calibration.threshold:.4g} in place of {bundle.calibration.threshold:.4g}" in note
    run = predict(tmp_path / "m.onnx", parts)
    assert result.note in run.warnings
    assert run.bundle.calibration == found.calibration
    for prediction in run:
        assert prediction.score == prediction.score_map.max()


def test_the_command_and_a_benchmark(cfa, good_dir: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    small = ("--weights", "embedded", "--size", 32, "--epochs", 1)
    assert cfa("fit", good_dir, "--min-area", 30, *small).code == 0
    assert "30 px of the image" in cfa("info").out
    assert_refused(cfa("fit", good_dir, "--min-area", 0, *small), 2, "min_area 0 is out of range", "1 or more")
    assert_refused(
        cfa("fit", good_dir, "--min-area", 5760, "--out", "n", *small), 2, "5760 px is not less", "--min-area 50"
    )
    root = make_tree(tmp_path / "tree", ["bolt"])
    config = FitConfig(weights="embedded", size=(32, 32), epochs=1, min_area=60)
    (found,) = benchmark(open_dataset(str(root)), config, out=tmp_path / "out", save_models=True).evaluations
    model = tmp_path / "out/models/resnet18-seed0/bolt.safetensors"
    tested = predict(model, [str(path) for path in (root / "bolt" / "test").rglob("*.png")])
    scores = sorted(opened_maximum(prediction.map, 60) for prediction in tested)
    assert sorted(image.score for image in found.images) == pytest.approx(scores, rel=1e-3)
