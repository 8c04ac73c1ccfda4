"""The verb `calibrate`: new thresholds from further good images and known defects, and the evidence for them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.stats import binomtest

from cfa_cli import FitConfig, calibrate, fit, load_bundle, predict, save_bundle
from cfa_cli.engine.calibrate import tabulate
from cfa_cli.errors import BundleError, InputError, UsageError
from tests.conftest import write_part

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """12 good parts that the model has not seen, and defects: 3 squares and a faint stain."""
    root = tmp_path_factory.mktemp("labelled")
    for number in range(12):
        write_part(root / "good" / f"{number:02}.png", 200 + number)
    for number in range(3):
        write_part(root / "defects" / "square" / f"{number}.png", 300 + number, defect=True)
    faint = cv2.imread(str(root / "good" / "00.png")).astype(np.float32)
    faint[30:50, 30:50] += 30
    (root / "defects" / "stain").mkdir()
    cv2.imwrite(str(root / "defects" / "stain" / "0.png"), faint.clip(0, 255))
    return root


def scores_of(model, folder):
    return {prediction.source.path.name: prediction.score for prediction in predict(model, folder)}


def test_good_images_are_added_to_the_hold_out_and_judged_as_new_ones(model, labelled, tmp_path):
    before, found = load_bundle(model), calibrate(model, labelled / "good")
    new = scores_of(model, labelled / "good")
    calibration = found.bundle.calibration
    expected = sorted([*before.calibration.holdout_scores, *new.values()])
    assert calibration.holdout_scores == pytest.approx(expected, rel=1e-5)
    assert len(expected) == 17
    assert calibration.threshold == calibration.holdout_scores[13]  # the 14th: 4 of 18 gaps are over it, 22 %
    assert calibration.max_fpr == 0.25
    assert found.bundle.tensors.keys() == before.tensors.keys()
    assert all((found.bundle.tensors[name] == tensor).all() for name, tensor in before.tensors.items())
    for name, score in new.items():
        place = int(np.argmin(np.abs(np.array(calibration.holdout_scores) - score)))
        mean = cv2.imread(str(labelled / "good" / name)).mean() / 255
        assert found.bundle.holdout.brightness[place] == pytest.approx(mean, abs=1e-4)
    evidence = found.evidence
    assert (evidence.good, evidence.replaced, evidence.choice) == (12, False, "max-fpr")
    assert evidence.before == before.calibration.threshold
    save_bundle(found.bundle, tmp_path / "new.safetensors")
    again = load_bundle(tmp_path / "new.safetensors")
    assert again.recalibration == evidence
    assert again.calibration == calibration
    with pytest.raises(InputError, match="already"):
        calibrate(again, labelled / "good")


def test_good_images_take_the_place_of_the_hold_out(model, labelled):
    found = calibrate(model, [labelled / "good"], max_fpr=0.1, replace_holdout=True).bundle
    new = sorted(scores_of(model, labelled / "good").values())
    assert found.calibration.holdout_scores == pytest.approx(new, rel=1e-5)
    assert found.calibration.threshold == found.calibration.holdout_scores[11]  # 1 of 13 gaps is over it, 8 %
    assert len(found.holdout.contrast) == 12
    middle = (found.calibration.display_low + found.calibration.display_high) / 2
    assert middle == pytest.approx(found.calibration.pixel_threshold)  # a good part looks good
    assert found.calibration.extent_threshold <= found.calibration.pixel_threshold


def test_all_defects_are_caught_by_the_largest_threshold_that_does(model, labelled):
    found = calibrate(model, labelled / "good", defects=labelled / "defects", catch_all=True)
    lowest = min(scores_of(model, labelled / "defects").values())
    threshold = found.bundle.calibration.threshold
    assert lowest * (1 - 1e-5) < threshold < lowest
    assert found.evidence.defects == {"square": 3, "stain": 1}
    row = next(row for row in found.evidence.table if row.threshold == threshold)
    assert row.caught == {"square": 3, "stain": 1}
    flagged = sum(score > threshold for score in found.bundle.calibration.holdout_scores)
    assert row.flagged == flagged
    said = found.evidence.describe(found.bundle.calibration)
    assert "--catch-all" in said
    assert f"{flagged} of 17 good images" in said
    assert "4 of 4 (square 3 of 3, stain 1 of 1)" in said


def test_the_table_by_hand():
    good = [float(score) for score in range(1, 20)]
    rows = tabulate(good, {"bent": [18.5], "worn": [5.0, 30.0]}, [10.0])
    by_threshold = {round(row.threshold, 3): row for row in rows}
    assert list(by_threshold) == [5, 10, 16, 18, 19]  # below all defects, given, and 20 %, 10 %, and 5 % or less
    assert [row.flagged for row in rows] == [15, 9, 3, 1, 0]
    assert [row.caught for row in rows][1:] == [{"bent": 1, "worn": 1}] * 3 + [{"bent": 0, "worn": 1}]
    assert rows[0].caught == {"bent": 1, "worn": 2}
    for row in rows:
        expected = binomtest(row.flagged, 19).proportion_ci(0.9, "exact")
        assert (row.fpr_low, row.fpr_high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_threshold_alone(model):
    before = load_bundle(model)
    found = calibrate(before, threshold=2 * before.calibration.threshold)
    assert found.bundle.calibration.threshold == 2 * before.calibration.threshold
    assert found.bundle.calibration.holdout_scores == before.calibration.holdout_scores
    assert found.bundle.holdout == before.holdout
    assert found.evidence.choice == "threshold"
    again = calibrate(found.bundle, max_fpr=0.25)  # and back
    assert again.bundle.calibration.threshold == pytest.approx(before.calibration.threshold)


def test_what_the_model_ignores_has_no_say(good_dir, labelled, tmp_path):
    mask = np.zeros((72, 80), np.uint8)
    mask[:, :60] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    bundle = fit(good_dir, FitConfig(weights="embedded", size=(64, 64), epochs=1), ignore=tmp_path / "mask.png").bundle
    found = calibrate(bundle, labelled / "good", replace_holdout=True).bundle.calibration
    assert found.display_low > 0  # the median of what is kept; of all pixels it is that of the ignored ones, 0
    assert found.extent_threshold > found.display_low


def test_a_model_of_an_earlier_version(labelled):
    old = load_bundle(GOLDEN / "format1-default.safetensors")
    assert calibrate(old, labelled / "good").bundle.holdout is None  # what the old ones were like is not known
    assert len(calibrate(old, labelled / "good", replace_holdout=True).bundle.holdout.brightness) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_fpr": 0.1, "threshold": 1.0}, "exclude"),
        ({"max_fpr": 0.1, "catch_all": True, "defects": "x"}, "exclude"),
        ({"catch_all": True}, "--defects|known defects"),
        ({"replace_holdout": True, "threshold": 1.0}, "--replace"),
        ({}, "nothing to calibrate"),
        ({"max_fpr": 1.0}, "--max-fpr"),
        ({"threshold": float("nan")}, "--threshold"),
        ({"threshold": 0.0}, "--threshold"),
    ],
)
def test_arguments_that_do_not_fit_together(arguments, message):
    with pytest.raises(UsageError, match=message):
        calibrate("no-model.safetensors", **arguments)


def test_images_that_say_nothing_new(model, good_dir, labelled, tmp_path):
    with pytest.raises(InputError, match="fitted on"):
        calibrate(model, good_dir)
    with pytest.raises(InputError, match="as good and as a defect"):
        calibrate(model, labelled / "good", defects=labelled / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"")
    with pytest.raises(InputError, match="None of the good images"):
        calibrate(model, tmp_path / "bad")
    with pytest.raises(InputError, match="None of the defects"):
        calibrate(model, labelled / "good", defects=tmp_path / "bad")


@pytest.mark.parametrize("name", ["m.onnx", "m.xml", "m.pt2"])
def test_exported_models_keep_their_thresholds(name):
    with pytest.raises(BundleError, match="exported model") as refused:
        calibrate(name, threshold=1.0)
    assert "cfa export" in (refused.value.hint or "")
