"""`cfa predict`: what it writes, what it says, and its exit codes."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfa_cli import load_bundle, predict
from tests.conftest import assert_refused, write_part


@pytest.fixture
def parts(tmp_path, model):
    """Two parts that the model was trained on and a bad, larger one, two of one name, and the model beside them."""
    shutil.copy(model, tmp_path / "cfa-model.safetensors")
    write_part(tmp_path / "in" / "line1" / "part.png", 0)
    write_part(tmp_path / "in" / "line2" / "part.png", 101, defect=True, size=(144, 160))
    write_part(tmp_path / "in" / "other.bmp", 10)
    return tmp_path / "in"


def rows(out="maps"):
    return list(csv.DictReader(io.StringIO(Path(out, "scores.csv").read_text("utf-8"))))


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_scores_overlays_and_summary(cfa, parts):
    done = cfa("predict", "in")
    assert done.code == 0
    bundle, found = load_bundle("cfa-model.safetensors"), rows()
    assert list(found[0]) == [
        "path",
        "score",
        "normalized",
        "threshold",
        "label",
        "milliseconds",
        "error",
        "misfit",
        "model",
        "near_threshold",
    ]
    assert [row["path"] for row in found] == ["in/line1/part.png", "in/line2/part.png", "in/other.bmp"]
    for row, prediction in zip(found, predict(bundle, "in"), strict=True):
        assert np.float32(row["score"]) == prediction.score
        assert float(row["normalized"]) == pytest.approx(prediction.normalized)
        assert float(row["threshold"]) == pytest.approx(bundle.calibration.threshold)
        assert (row["label"], row["error"]) == (prediction.label, "")
        assert float(row["milliseconds"]) > 0
    assert [row["label"] for row in found] == ["good", "anomalous", "good"]
    assert below("maps/overlays") == ["line1/part.png", "line2/part.png", "other.png"]
    assert [cv2.imread(f"maps/overlays/{name}").shape[:2] for name in below("maps/overlays")] == [
        (72, 80),
        (144, 160),
        (72, 80),
    ]
    assert Path("maps/report.html").exists()
    lines = done.out.splitlines()
    assert lines[0].strip() == "Highest scores"
    assert lines[2].split()[2:] == ["anomalous", "in/line2/part.png"]  # the worst first
    assert "1 anomalous, 2 good" in done.out
    assert "maps/scores.csv" in done.out


def test_the_defect_is_marked_and_good_parts_are_left_as_they_are(cfa, parts):
    # Well over the model's own: at 64 px the network sees most of the part from everywhere.
    cfa("predict", "in", "--save", "overlay,mask,map,heatmap", "--threshold", 2.5)
    mask = cv2.imread("maps/masks/line2/part.png", cv2.IMREAD_UNCHANGED)
    assert mask.shape == (144, 160)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[72:100, 40:68].mean() > 250  # the bright square
    assert mask[:, 130:].max() == 0
    assert cv2.imread("maps/masks/line1/part.png", cv2.IMREAD_UNCHANGED).max() == 0
    score_map = cv2.imread("maps/maps/line2/part.png".replace(".png", ".tiff"), cv2.IMREAD_UNCHANGED)
    (prediction,) = predict(load_bundle("cfa-model.safetensors"), "in/line2/part.png")
    np.testing.assert_array_equal(score_map, prediction.map)
    assert below("maps/heatmaps") == ["line1/part.png", "line2/part.png", "other.png"]


@pytest.mark.parametrize(
    ("save", "folders"),
    [("none", []), ("mask", ["masks", "report"]), ("map,mask", ["maps", "masks", "report"])],
)
def test_only_what_is_asked_for_is_saved(cfa, parts, save, folders):
    assert cfa("predict", "in", "--save", save, "--out", "out").code == 0
    assert sorted(path.name for path in Path("out").iterdir() if path.is_dir()) == folders
    assert len(rows("out")) == 3


@pytest.mark.parametrize("save", ["", "overlays", "map,what", "none,map"])
def test_unknown_choices_of_save(cfa, parts, save):
    assert_refused(cfa("predict", "in", "--save", save), 2, "--save", "")


def test_unreadable_images_have_a_row_and_exit_with_8(cfa, parts):
    (parts / "a-empty.png").write_bytes(b"")
    (parts / "cut.jpg").write_bytes((parts / "other.bmp").read_bytes()[:400])
    done = cfa("predict", "in")
    assert done.code == 8
    found = rows()
    assert [row["path"] for row in found if row["error"]] == ["in/a-empty.png", "in/cut.jpg"]
    assert found[0] == {
        **dict.fromkeys(("score", "normalized", "label", "milliseconds", "misfit", "model", "near_threshold"), ""),
        "path": "in/a-empty.png",
        "threshold": found[1]["threshold"],
        "error": "in/a-empty.png is empty (0 bytes).",
    }
    assert [row["label"] for row in found if not row["error"]] == ["good", "anomalous", "good"]
    assert "in/a-empty.png is empty (0 bytes)." in done.out
    document = json.loads(cfa("predict", "in", "--json", "--force").out)
    assert document["error_count"] == 2
    assert document["errors"][0] == {"path": "in/a-empty.png", "error": "in/a-empty.png is empty (0 bytes)."}


def test_nothing_but_unreadable_images(cfa, parts):
    (parts.parent / "bad").mkdir()
    (parts.parent / "bad" / "x.png").write_bytes(b"")
    done = cfa("predict", "bad")
    assert done.code == 8
    assert rows()[0]["score"] == ""


def test_json_is_one_document(cfa, parts):
    done = cfa("predict", "in", "--json", "--out", "o")
    document = json.loads(done.out)
    assert (document["version"], document["command"], document["scores"]) == (1, "predict", "o/scores.csv")
    assert (document["images"], document["good"], document["anomalous"], document["error_count"]) == (3, 2, 1, 0)
    assert document["worst"][0]["path"] == "in/line2/part.png"
    assert [entry["score"] for entry in document["worst"]] == sorted(
        (entry["score"] for entry in document["worst"]), reverse=True
    )


def test_scores_near_the_threshold_are_counted_and_marked(cfa, parts, good_dir):
    """Against the interval that the model keeps: in the table, in both summaries, in the lines of a stream."""
    calibration = load_bundle("cfa-model.safetensors").calibration
    done = cfa("predict", good_dir, "in/line2", "--json", "--out", "o")
    document, found = json.loads(done.out), rows("o")
    near = [calibration.threshold_low <= float(row["score"]) <= calibration.threshold_high for row in found]
    assert 0 < sum(near) < len(near)
    assert [row["near_threshold"] == "yes" for row in found] == near
    assert [one["near_threshold"] for one in document["results"]] == near
    assert document["near_threshold"] == sum(near)
    resumed = cfa("predict", good_dir, "in/line2", "--resume", "--out", "o")
    assert re.search(r"Near the threshold +(\d+)", resumed.out)[1] == str(sum(near))
    given = cfa("predict", "in", "--threshold", 7.5, "--out", "given", "--json")
    assert json.loads(given.out)["near_threshold"] is None  # nothing was estimated
    assert {row["near_threshold"] for row in rows("given")} == {""}


def test_quiet_leaves_stderr_empty(cfa, parts):
    assert cfa("predict", "in/line1", "in/other.bmp", "--quiet").err == ""


def test_fail_on_anomaly(cfa, parts):
    assert cfa("predict", "in", "--fail-on-anomaly").code == 1
    assert cfa("predict", "in/line1", "--fail-on-anomaly", "--force").code == 0
    assert cfa("predict", "in", "--fail-on-anomaly", "--threshold", 100, "--force").code == 0
    assert cfa("predict", "in/line1", "--fail-on-anomaly", "--threshold", 0.01, "--force").code == 1


def test_the_threshold_can_be_chosen(cfa, parts):
    kept = load_bundle("cfa-model.safetensors").calibration.holdout_scores
    for arguments, expected in [(["--max-fpr", 0.9], kept[0]), (["--threshold", 7.5], 7.5)]:
        assert cfa("predict", "in", "--force", "--save", "none", *arguments).code == 0
        assert [float(row["threshold"]) for row in rows()] == pytest.approx([expected] * 3)
    assert_refused(cfa("predict", "in", "--threshold", 1, "--max-fpr", 0.1), 2, "exclude each other", "Give one")
    assert_refused(cfa("predict", "in", "--threshold", 0), 2, "not a positive number", "cfa info")
    assert_refused(cfa("predict", "in", "--max-fpr", 0), 2, "not between 0 and 1", "--max-fpr 0.05")


def test_files_globs_and_paths_on_stdin(cfa, parts, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("in/other.bmp\nin/nothing.png\n"))
    assert cfa("predict", "in/*/part.png", "-", "--save", "overlay").code == 8
    assert [row["path"] for row in rows()] == [
        "in/line1/part.png",
        "in/line2/part.png",
        "in/other.bmp",
        "in/nothing.png",
    ]
    assert "no file" in rows()[3]["error"]
    # Where standard input's paths have in common is not known before the last one: they are named as they are.
    assert below("maps/overlays") == ["in/other.png", "line1/part.png", "line2/part.png"]


def test_results_are_not_overwritten_unless_asked(cfa, parts):
    cfa("predict", "in")
    before = Path("maps/scores.csv").read_bytes()
    assert_refused(cfa("predict", "in/line1"), 3, "earlier run", "--resume")
    assert Path("maps/scores.csv").read_bytes() == before
    assert cfa("predict", "in/line1", "--force").code == 0
    assert len(rows()) == 1
    assert below("maps/overlays") == ["part.png"]


def test_resume_goes_on_where_it_stopped(cfa, parts):
    (parts / "line1" / "a.png").write_bytes(b"")
    cfa("predict", "in")
    whole = rows()
    table = Path("maps/scores.csv")
    lines = table.read_bytes().splitlines(keepends=True)
    # As after a kill within the fourth row: the empty image, a good one and the anomalous one are done.
    table.write_bytes(b"".join(lines[:4]) + lines[4][:10])
    done = cfa("predict", "in", "--resume", "--fail-on-anomaly")
    again = rows()
    assert again[:3] == whole[:3]
    for row, expected in zip(again, whole, strict=True):
        assert {**row, "milliseconds": ""} == {**expected, "milliseconds": ""}
    # The results are those of the whole run, whoever computed them.
    assert done.code == 1
    assert "1 anomalous, 2 good" in done.out
    assert [line.split() for line in done.out.splitlines() if "Done before" in line] == [
        ["Done", "before", "2"]
    ]  # what failed is tried again
    assert cfa("predict", "in", "--resume").code == 8  # nothing is left to do, and one image could not be read
    assert_refused(cfa("predict", "in", "--resume", "--threshold", 9), 3, "another model", "--force")


def test_ctrl_c_keeps_what_is_done(cfa, parts, monkeypatch):
    from cfa_cli.engine import model

    def interrupted(*arguments, **options):
        for batch in score_batches(*arguments, **options):
            yield batch[:2]
            raise KeyboardInterrupt

    score_batches = model.score_batches
    with monkeypatch.context() as patch:
        patch.setattr(model, "score_batches", interrupted)
        done = cfa("predict", "in")
    assert done.code == 130
    assert done.err.splitlines()[-1] == "Error: Interrupted."
    assert [row["path"] for row in rows()] == ["in/line1/part.png", "in/line2/part.png"]
    assert below("maps/overlays") == ["line1/part.png", "line2/part.png"]
    assert cfa("predict", "in", "--resume").code == 0
    assert len(rows()) == 3
