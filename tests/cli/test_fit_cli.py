"""`cfa fit`: the file it writes, and what it says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cfa_cli.bundle import load_bundle
from cfa_cli.config import FitConfig
from tests.conftest import assert_refused, write_part

QUICK = ("--weights", "embedded", "--size", 32, "--epochs", 1)


@pytest.fixture
def few(tmp_path):
    """Six good images."""
    for number in range(6):
        write_part(tmp_path / "few" / f"{number}.png", number)
    return tmp_path / "few"


def test_the_model_is_written_and_summed_up(cfa, few, tmp_path):
    done = cfa("fit", few, *QUICK, "--seed", 5)
    assert done.code == 0
    path = tmp_path / "cfa-model.safetensors"
    bundle = load_bundle(path)
    facts = dict(line.split(maxsplit=1) for line in done.out.splitlines()[1:])
    assert facts["Images"].strip() == "5 to train on, 1 held out for the threshold"
    assert facts["Backbone"].strip() == "resnet18 (layer1, layer2, layer3)"
    assert facts["Weights"].startswith(f"embedded (sha256 {bundle.backbone.sha256[:12]}")
    assert "32 x 32 px" in facts["Geometry"]
    assert "4 x 4 positions" in facts["Geometry"]
    assert facts["Threshold"].startswith(f"{bundle.calibration.threshold:.4g}, from 1 held-out good images")
    assert "1 epoch, seed 5" in facts["Trained"]
    assert facts["Time"].strip().endswith(" s")
    assert facts["File"].strip() == f"cfa-model.safetensors ({path.stat().st_size / 1e6:.1f} MB)"
    assert "Warning: Only 6 images" in done.err
    assert "Warning: The threshold rests on 1 held-out images" in done.err


def test_json_is_one_document(cfa, few):
    done = cfa("fit", few, *QUICK, "--out", "made/model.safetensors", "--json")
    document = json.loads(done.out)
    bundle = load_bundle("made/model.safetensors")
    assert (document["version"], document["command"]) == (1, "fit")
    assert document["model"] == "made/model.safetensors"
    assert (document["train_images"], document["holdout_images"], document["skipped"]) == (5, 1, [])
    assert document["calibration"]["threshold"] == bundle.calibration.threshold
    assert document["tensors"]["bank"] == [32, 224]
    assert len(document["losses"]) == 1
    assert len(document["warnings"]) == 2


def test_quiet_leaves_warnings_and_errors_alone(cfa, few, good_dir):
    lines = cfa("fit", few, *QUICK, "--quiet").err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("Warning: ") for line in lines)
    nothing_to_warn_of = cfa("fit", good_dir, *QUICK, "--max-fpr", 0.3, "--quiet", "--force")
    assert (nothing_to_warn_of.code, nothing_to_warn_of.err) == (0, "")


def test_verbose_shows_how_long_each_phase_took(cfa, few):
    lines = [line for line in cfa("fit", few, *QUICK, "--verbose").err.splitlines() if line.endswith(" s")]
    assert [line.split(":")[0] for line in lines] == [
        "reading",
        "building the bank",
        "training",
        "whitening",
        "calibrating",
    ]


def test_an_existing_file_is_refused_before_any_work(cfa, few, tmp_path, monkeypatch):
    (tmp_path / "cfa-model.safetensors").write_text("precious")
    with monkeypatch.context() as patch:
        patch.setattr("cfa_cli.engine.fit.fit", None)
        assert_refused(cfa("fit", few, *QUICK), 3, "exists already", "--force")
        assert_refused(cfa("fit", few, *QUICK, "--out", few), 3, "is a folder", "--out")
        in_the_way = cfa("fit", few, *QUICK, "--out", few / "0.png" / "sub" / "model.safetensors")
        assert_refused(in_the_way, 3, "0.png is a file", "--out")
    assert (tmp_path / "cfa-model.safetensors").read_text() == "precious"
    assert cfa("fit", few, *QUICK, "--force").code == 0
    load_bundle(tmp_path / "cfa-model.safetensors")


def test_unreadable_images_are_listed_and_the_rest_is_done(cfa, few):
    (few / "cut.png").write_bytes((few / "0.png").read_bytes()[:300])
    (few / "zero.jpg").write_bytes(b"")
    done = cfa("fit", few, *QUICK)
    assert done.code == 8
    assert f"Warning: Left out: {few / 'cut.png'} is cut off: its end is missing." in done.err
    assert f"Warning: Left out: {few / 'zero.jpg'} is empty (0 bytes)." in done.err
    assert "2 left out" in done.out
    assert load_bundle("cfa-model.safetensors").provenance.images == 6
    done = cfa("fit", few, *QUICK, "--force", "--json")
    assert done.code == 8
    assert [entry["path"] for entry in json.loads(done.out)["skipped"]] == [str(few / "cut.png"), str(few / "zero.jpg")]


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ("", (448, 448)),
        ("--size small", (320, 320)),
        ("--preset fast", (320, 320)),
        ("--preset fast --size auto", (448, 448)),
    ],
)
def test_the_fast_preset_is_the_default_with_a_smaller_input(cfa, tmp_path, arguments, size):
    for number in range(2):
        write_part(tmp_path / "large" / f"{number}.png", number, size=(500, 500))
    assert cfa("fit", tmp_path / "large", "--weights", "embedded", "--layers", "16", *arguments.split()).code == 0
    config = load_bundle("cfa-model.safetensors").config
    assert config == replace(FitConfig(), weights="embedded", layers=("16",), size=size, gamma_c=0.5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", FitConfig(weights="embedded", size=(32, 32), epochs=1, gamma_c=0.5)),
        (
            "--preset paper",
            FitConfig(
                weights="embedded",
                size=(32, 32),
                stride=4,
                epochs=1,
                bank="mean",
                gamma_c=1,
                gamma_d=1,
                layers=("authors",),
                score_neighbours=3,
                whiten=False,
                normalize_positions=False,
            ),
        ),
        (
            "--size 64x48 --crop 32x40 --layers 8,4 --stride 5 --bank ema --gamma-c 2 --gamma-d 3 --epochs 0 "
            "--batch-size 3 --lr 0.01 --seed 9 --augment rotate+flip --holdout 0.4 --max-fpr 0.2 --precision float32 "
            "--device cpu",
            FitConfig(
                weights="embedded",
                size=(64, 48),
                crop=(32, 40),
                layers=("8", "4"),
                stride=5,
                bank="ema",
                gamma_c=2,
                gamma_d=3,
                epochs=0,
                batch_size=3,
                lr=0.01,
                seed=9,
                augment="rotate+flip",
                holdout=0.4,
                max_fpr=0.2,
                precision="float32",
                device="cpu",
            ),
        ),
    ],
    ids=["default", "paper", "all"],
)
def test_every_option_arrives(cfa, few, arguments, expected):
    assert cfa("fit", few, *QUICK, *arguments.split()).code == 0
    assert load_bundle("cfa-model.safetensors").config == expected


def test_another_backbone_and_weights_from_a_file(cfa, few, tmp_path):
    import timm
    import torch

    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "mine.pth")
    done = cfa("fit", few, "--backbone", "resnet10t", "--weights", "mine.pth", "--size", 32, "--epochs", 1)
    assert done.code == 0
    bundle = load_bundle("cfa-model.safetensors")
    assert (bundle.backbone.name, bundle.backbone.weights) == ("resnet10t", "file: mine.pth")
    (tmp_path / "mine.pth").unlink()  # the model is complete
    assert cfa("predict", few, "--save", "none").code == 0


def test_the_same_command_gives_the_same_bytes(cfa, few, tmp_path):
    shutil.copytree(few, tmp_path / "copy")
    for folder, out in [(few, "a.safetensors"), (tmp_path / "copy", "b.safetensors")]:
        assert cfa("fit", folder, *QUICK, "--out", out).code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_images_of_more_pixels_than_are_wanted_are_left_out(cfa, few):
    """Of 72 x 80 px, 0.00576 megapixels, all but one of 100 x 100 px are within 0.006 megapixels."""
    write_part(few / "large.png", 9, size=(100, 100))
    done = cfa("fit", few, *QUICK, "--max-pixels", 0.006, "--report")
    assert done.code == 8
    assert "Warning: Left out: " in done.err
    assert "large.png" in done.err
    assert load_bundle("cfa-model.safetensors").provenance.images == 6
    done = cfa("predict", few, "--max-pixels", 0.006, "--save", "none", "--json")
    assert done.code == 8
    assert [Path(each["path"]).name for each in json.loads(done.out)["errors"]] == ["large.png"]
    for command in ("fit", "predict"):
        assert_refused(cfa(command, few, "--max-pixels", 0), 2, "--max-pixels 0.0 is not a positive number", "200")
