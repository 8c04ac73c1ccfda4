"""`cfa calibrate`: its table, what is kept in the model and shown of it, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfa_cli import load_bundle
from tests.conftest import assert_refused, draw_part, write_part


@pytest.fixture
def labelled(tmp_path):
    for number in range(6):
        write_part(tmp_path / "test" / "good" / f"{number}.png", 200 + number)
    for number in range(3):
        write_part(tmp_path / "test" / "square" / f"{number}.png", 300 + number, defect=True)
    return tmp_path / "test"


def test_the_table_the_model_and_what_is_shown_of_it(cfa, model, labelled):
    (labelled / "good" / "cut.png").write_bytes((labelled / "good" / "0.png").read_bytes()[:99])
    done = cfa("calibrate", model, labelled / "good", "--defects", labelled, "--catch-all", "--out", "new.safetensors")
    assert done.code == 8  # one cannot be read
    assert "cut.png" in done.err
    assert "Left out of the defects: 7 images in a folder called good." in done.err
    lines = done.out.splitlines()
    assert lines[1].split() == ["threshold", "false", "alarms", "90", "%", "interval", "caught"]
    (chosen,) = [line for line in lines if line.endswith("chosen")]
    assert "3 of 3" in chosen
    assert "of 11 " in chosen  # 5 held out, 6 more
    new = load_bundle("new.safetensors")
    assert new.recalibration.good == 6
    shown = " ".join(cfa("info", "new.safetensors").out.split())
    assert "by --catch-all, with 6 further good images beside the hold-out" in shown
    document = json.loads(cfa("info", "new.safetensors", "--json").out)
    assert document["recalibration"]["defects"] == {"square": 3}
    cfa("predict", labelled / "square", "--model", "new.safetensors", "--out", "out")
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "by --catch-all, with 6 further good images" in page
    assert "25, of which" not in page


def test_json_and_errors(cfa, model, labelled):
    done = cfa("calibrate", model, labelled / "good", "--replace", "-o", "new.safetensors", "--json")
    assert done.code == 0
    document = json.loads(done.out)
    assert document["command"] == "calibrate"
    assert document["model"] == "new.safetensors"
    assert len(document["calibration"]["holdout_scores"]) == 6
    again = ("calibrate", model, labelled / "good", "--out", "new.safetensors")
    assert_refused(cfa(*again), 3, "exists already", "--force")
    assert cfa(*again, "--force").code == 0
    assert_refused(cfa("calibrate", "m.onnx", "--threshold", 2, "-o", "x"), 4, "exported model", "cfa export")


def test_another_light_is_an_alarm_until_the_model_is_calibrated_for_it(cfa, model, tmp_path):
    for number in range(40):
        part = draw_part(400 + number)
        for name, factor in (("before", 1.0), ("after", 1.2)):
            path = tmp_path / name / ("seen" if number < 16 else "new") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), (part * factor).clip(0, 255).astype(np.uint8))
    assert cfa("calibrate", model, "before/seen", "--out", "m.safetensors").code == 0  # 5 held-out images tell little
    assert "Drift" not in cfa("predict", "before/new", "--model", "m.safetensors", "--out", "1").err
    done = cfa("predict", "after/new", "--model", "m.safetensors", "--out", "2", "--json")
    assert done.err.count("brighter by 2") == 1
    drift = json.loads(done.out)["drift"]
    assert drift["images"] == 24
    assert "cfa calibrate MODEL GOOD... --replace --out NEW" in drift["message"]
    assert "brighter by 2" in Path("2/report.html").read_text(encoding="utf-8")
    added = cfa("calibrate", "m.safetensors", "after/seen", "--out", "both.safetensors")
    assert "differ from the hold-out that they are added to: " in added.err
    assert "--replace" in added.err
    replaced = cfa("calibrate", "m.safetensors", "after/seen", "--replace", "--out", "n.safetensors")
    assert replaced.code == 0
    assert "differ" not in replaced.err
    done = cfa("predict", "after/new", "--model", "n.safetensors", "--out", "3", "--json")
    assert json.loads(done.out)["drift"] is None
