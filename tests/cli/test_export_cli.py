"""`cfa export`, and `cfa predict` with what it wrote, as they are typed."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from cfa_cli.__main__ import run
from cfa_cli.model import deployed
from tests.engine.exports import make_bundle, write_image

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("model") / "m.safetensors", layers=("4", "8"))


@pytest.fixture(scope="module")
def exported(model):
    assert run(["export", "--model", str(model), "--with-resize", "--images", str(model.parent / "good")]) == 0
    return model.with_suffix(".onnx")


def rows(folder):
    with (folder / "scores.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("options", [[], ["--max-fpr", "0.4"], ["--threshold", "0.01", "--save", "map,mask"]])
def test_predict_runs_the_exported_model(model, exported, tmp_path, options):
    for number in range(6):  # none of those that made the threshold: rounding would decide about their label
        image = np.random.default_rng(10 + number).normal(120, 25 + 2 * number, (50, 44, 3))
        write_image(tmp_path / f"images/{number}.png", image.clip(0, 255).astype(np.uint8))
    common = [str(tmp_path / "images"), *options, "--quiet"]
    assert run(["predict", *common, "--model", str(exported), "--out", str(tmp_path / "onnx")]) == 0
    assert run(["predict", *common, "--model", str(model), "--precision", "float32", "--out", str(tmp_path / "b")]) == 0
    found, expected = rows(tmp_path / "onnx"), rows(tmp_path / "b")
    assert len(found) == len(expected) == 6
    for one, other in zip(found, expected, strict=True):
        assert [one[key] for key in ("path", "label", "threshold")] == [
            other[key] for key in ("path", "label", "threshold")
        ]
        assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-4)

    def files(folder):
        return sorted(path.relative_to(folder) for path in folder.rglob("*"))

    assert files(tmp_path / "onnx") == files(tmp_path / "b")


@pytest.mark.parametrize(("format", "suffix"), [("onnx", "onnx"), ("openvino", "xml")])
def test_runtimes_keep_nothing_in_the_home_folder(model, tmp_path, format, suffix):
    """By themselves ONNX Runtime and OpenVINO write identifiers and statistics there, to send them."""
    if format == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    home = tmp_path / "home"
    home.mkdir()
    names = ("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "ORT_"))}
    environment |= dict.fromkeys(names, str(home))
    out = tmp_path / f"m.{suffix}"
    images = model.parent / "good"
    for command in (
        ["export", "--model", model, "--format", format, "--out", out],
        ["predict", images / "0.png", "--model", out, "--out", tmp_path / "maps", "--save", "none"],
    ):
        subprocess.run([sys.executable, "-m", "cfa_cli", *map(str, command), "--quiet"], env=environment, check=True)
    assert list(home.rglob("*")) == []


def test_json(model, tmp_path, capsys):
    out = tmp_path / "m.pt2"
    command = ["export", "-m", str(model), "--format", "torch", "--out", str(out), "--json", "--quiet"]
    assert run(command) == 0
    shown, notes = capsys.readouterr()
    document = json.loads(shown)
    assert notes == ""
    assert document["files"] == [str(out)]
    assert document["bytes"] == out.stat().st_size
    assert document["verification"]["max_relative"] < 1e-4
    assert run(command) == 3
    assert "--force" in capsys.readouterr().err


def test_an_export_that_scores_otherwise_fails_with_7(model, tmp_path, monkeypatch, capsys):
    right = deployed.position_scores
    monkeypatch.setattr(deployed, "position_scores", lambda squared: right(squared) + 0.01)
    assert run(["export", "-m", str(model), "--out", str(tmp_path / "m.onnx")]) == 7
    assert "Error: The exported model does not score like this one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_exported_model_has_its_own_precision(exported, capsys):
    assert run(["predict", str(exported.parent / "good"), "-m", str(exported), "--precision", "bfloat16"]) == 2
    assert "--precision bfloat16 does not go with an exported model" in capsys.readouterr().err
