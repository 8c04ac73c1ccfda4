"""Files that earlier versions wrote: they are read, and give the same results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfa_cli import load_bundle, predict, save_bundle
from cfa_cli.engine.export import TOLERANCE
from cfa_cli.engine.runtimes import load_model
from cfa_cli.engine.scorer import score_sources
from cfa_cli.records import Source
from cfa_cli.results.benchmark import Results
from cfa_cli.results.benchmark_files import read_results
from cfa_cli.results.scores import read_run

GOLDEN = Path(__file__).parent / "golden"
PARTS = Path(__file__).parents[1] / "examples" / "parts" / "test"


@pytest.mark.parametrize("name", ["format1-default", "format1-paper"])
def test_a_bundle_of_format_1_scores_as_it_did(name: str) -> None:
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    bundle = load_bundle(GOLDEN / f"{name}.safetensors")
    assert bundle.calibration.pixel_threshold == expected["pixel_threshold"]
    assert not bundle.config.whiten  # as there was no such thing
    predictions = {p.source.name: p for p in predict(bundle, [str(PARTS / "good"), str(PARTS / "scratch")])}
    assert predictions.keys() == expected["scores"].keys()
    for image, prediction in predictions.items():
        assert prediction.score == pytest.approx(expected["scores"][image], rel=1e-6)
        assert prediction.label == expected["labels"][image]
        assert prediction.map is not None
        assert np.mean(prediction.map, dtype=np.float64) == pytest.approx(expected["map_means"][image], rel=1e-6)


def test_an_export_of_format_1_scores_as_its_bundle_did() -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    expected = json.loads((GOLDEN / "format1-default.json").read_text())
    bundle, scorer = load_model(GOLDEN / "format1-default.onnx")
    assert bundle.config == load_bundle(GOLDEN / "format1-default.safetensors").config
    assert bundle.calibration.pixel_threshold == expected["pixel_threshold"]
    paths = [PARTS / name for name in expected["scores"]]
    predictions = list(score_sources(scorer, [Source(path, path.name) for path in paths], bundle.calibration))
    for prediction, (image, score) in zip(predictions, expected["scores"].items(), strict=True):
        assert prediction.score == pytest.approx(score, rel=TOLERANCE)
        assert prediction.label == expected["labels"][image]


def test_a_bundle_of_format_1_is_saved_in_the_present_one(tmp_path: Path) -> None:
    old = load_bundle(GOLDEN / "format1-default.safetensors")
    save_bundle(old, tmp_path / "new.safetensors")
    new = load_bundle(tmp_path / "new.safetensors")
    assert replace(new, tensors={}) == replace(old, tensors={})
    assert new.tensors.keys() == old.tensors.keys()
    assert all((new.tensors[name] == tensor).all() for name, tensor in old.tensors.items())


def test_results_of_version_1_are_taken_up(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes((GOLDEN / "results-version1.json").read_bytes())
    document = json.loads((GOLDEN / "results-version1.json").read_text())
    wanted = load_bundle(GOLDEN / "format1-default.safetensors").config
    wanted = replace(wanted, backbone="resnet18", weights="embedded", layers=None, gamma_c=1, gamma_d=1)
    wanted = replace(wanted, precision="auto")
    found = read_results(tmp_path, Results("tiny/", wanted, (), (), {}))
    assert [(r.seed, r.category, r.aupro) for r in found.evaluations] == [
        (run["seed"], run["category"], run["aupro"]) for run in document["runs"]
    ]


def test_a_run_of_format_1_is_read() -> None:
    settings, rows = read_run(GOLDEN / "run-format1")
    assert settings["folder"] == "/photos"
    assert [(row.path.name, row.label) for row in rows] == [
        ("000.jpg", "good"),
        ("001.jpg", "good"),
        ("002.jpg", "good"),
        ("broken.png", None),
    ]
    assert rows[0].score == pytest.approx(0.0787292644)
    assert "is not an image" in (rows[3].error or "")
