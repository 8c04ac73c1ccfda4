"""`cfa info`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from cfa_cli.bundle import load_bundle, save_bundle


def test_what_a_model_is(cfa, model):
    done = cfa("info", model)
    bundle = load_bundle(model)
    assert (done.code, done.err) == (0, "")
    for text in (
        str(model),
        "24 good images",
        "resnet18 (layer1, layer2, layer3)",
        "embedded",
        "64 x 64 px",
        "8 x 8 positions",
        "128 centroids (kmeans)",
        f"{bundle.calibration.threshold:.4g}, from 5 held-out good images: aims at 25.0%",
        "2 epochs, seed 1",
        f"torch {bundle.provenance.torch}",
    ):
        assert text in done.out, text
    assert "Warning" not in done.out


def test_json(cfa, model):
    document = json.loads(cfa("info", model, "--json").out)
    bundle = load_bundle(model)
    assert (document["version"], document["command"], document["model"]) == (1, "info", str(model))
    assert document["config"]["epochs"] == 2
    assert document["grid"] == [8, 8]
    assert tuple(document["calibration"]["holdout_scores"]) == bundle.calibration.holdout_scores
    assert document["provenance"]["images_sha256"] == bundle.provenance.images_sha256
    assert document["tensors"] == {
        "bank": [128, 224],
        "descriptor.bias": [224],
        "descriptor.weight": [224, 450, 1, 1],
        "radius": [],
        "baseline": [8, 8],
        **({"ranges": [12]} if bundle.backbone.precision == "int8" else {}),
    }


def test_several_models_side_by_side(cfa, model, tmp_path):
    bundle = load_bundle(model)
    other = replace(bundle, calibration=replace(bundle.calibration, threshold=7.25), unknown={"colours": 1})
    save_bundle(other, tmp_path / "other.safetensors")
    shown = cfa("info", model, "other.safetensors")
    assert (shown.code, shown.err) == (0, "")
    line = next(line for line in shown.out.splitlines() if line.startswith("Threshold"))
    assert line.index(f"{bundle.calibration.threshold:.4g}, from") < line.index("7.25, from")
    assert shown.out.count("Computed in") == 1
    assert "colours" in shown.out
    document = json.loads(cfa("info", model, "other.safetensors", "--json").out)
    assert [one["model"] for one in document["models"]] == [str(model), "other.safetensors"]
    assert json.loads(cfa("info", model, "--json").out) == {"version": 1, "command": "info", **document["models"][0]}
    assert document["models"][1]["calibration"]["threshold"] == 7.25
    assert cfa("info", model, "none.safetensors").code == 4


def test_a_warning_is_shown_wherever_the_model_is(cfa, model, good_dir, tmp_path):
    bundle = load_bundle(model)
    warned = replace(bundle, backbone=replace(bundle.backbone, warning="These [weights] are poor."))
    save_bundle(warned, tmp_path / "warned.safetensors")
    assert "These [weights] are poor." in cfa("info", "warned.safetensors").out
    assert json.loads(cfa("info", "warned.safetensors", "--json").out)["backbone"]["warning"]
    predicted = cfa("predict", good_dir / "000.png", "--model", "warned.safetensors", "--save", "none", "--quiet")
    assert "Warning: These [weights] are poor." in predicted.err


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_number_type_that_fit_took_is_kept_and_shown(cfa, good_dir, precision):
    options = ("--weights", "embedded", "--size", "32", "--epochs", "0", "--precision", precision, "--quiet")
    assert cfa("fit", good_dir, *options).code == 0
    assert f"Computed in {precision}" in " ".join(cfa("info").out.split())
    assert json.loads(cfa("info", "--json").out)["backbone"]["precision"] == precision


def test_an_automatic_number_type_is_recorded_as_it_was_resolved(fitted):
    assert fitted.bundle.config.precision == "auto"
    assert fitted.bundle.backbone.precision in ("int8", "bfloat16", "float32")


def test_what_a_newer_version_wrote_is_named_wherever_the_model_is(cfa, model, good_dir, tmp_path):
    bundle = load_bundle(model)
    names = {"colours": ["red"], "geometry.rotation": 90, "config.\x1b[2Jclear": 1}
    save_bundle(replace(bundle, unknown=names), tmp_path / "newer.safetensors")
    shown = "ignores colours, config.\\x1b[2Jclear, geometry.rotation."
    assert shown in cfa("info", "newer.safetensors").out
    assert json.loads(cfa("info", "newer.safetensors", "--json").out)["unknown"] == names
    predicted = cfa("predict", good_dir / "000.png", "--model", "newer.safetensors", "--save", "none")
    assert predicted.code == 0
    assert predicted.err.count(shown) == 1


def test_it_takes_the_model_of_the_working_folder_and_loads_no_torch(model, tmp_path):
    shutil.copy(model, tmp_path / "cfa-model.safetensors")
    code = "import sys\nfrom cfa_cli.__main__ import run\nprint(run(['info']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert "24 good images" in done.stdout
