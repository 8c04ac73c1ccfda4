"""`cfa benchmark`, as it is typed."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from cfa_cli.__main__ import run
from cfa_cli.data.datasets import KNOWN
from tests.engine.trees import make_tree

QUICK = ["--weights", "embedded", "--size", "64", "--epochs", "1"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("data") / "tree", list(KNOWN["mvtec"].counts))


def test_fifteen_categories_in_under_two_minutes(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cfa_cli.cli.render.NOTE_SECONDS", 0)
    start = time.monotonic()
    assert run(["benchmark", str(tree), "--out", str(tmp_path), *QUICK, "--threshold-report"]) == 0
    assert time.monotonic() - start < 120
    shown, progress = capsys.readouterr()
    overview = shown.split("\nresnet18: the calibrated threshold")[0].splitlines()
    figures = {line.split()[0]: line.split()[1:] for line in overview if line}
    assert [name for name in figures if name in KNOWN["mvtec"].counts] == [*KNOWN["mvtec"].counts]
    runs = {r["category"]: r for r in json.loads((tmp_path / "results.json").read_text())["runs"]}
    assert figures["screw"][:5] == [
        f"{runs['screw'][m]:.3f}" for m in ("image_auroc", "image_f1max", "pixel_auroc", "aupro", "pixel_f1max")
    ]
    assert float(figures["average"][3]) == pytest.approx(sum(r["aupro"] for r in runs.values()) / 15, abs=6e-4)
    assert "recall" in shown
    assert "No published figures stand beside these" in shown
    assert "all evaluations: 14/15" in progress
    assert "; zipper (resnet18, seed 0): training: 4/6  epoch 1/1" in progress
    assert "ETA" in progress


def test_json_is_one_document(tree, tmp_path, capsys):
    command = ["benchmark", str(tree), "--category", "screw", "--out", str(tmp_path), *QUICK, "--quiet", "--json"]
    assert run([*command, "--seed", "0", "--seed", "1"]) == 0
    shown, progress = capsys.readouterr()
    assert progress == ""
    document = json.loads(shown)
    assert [(r["category"], r["seed"]) for r in document["runs"]] == [("screw", 0), ("screw", 1)]
    assert document["averages"]["resnet18"]["aupro"]["spread"] is not None


def test_a_failed_category_is_told_and_exits_with_8(tree, tmp_path, capsys):
    root = make_tree(tmp_path / "tree", ["bolt", "nut"])
    (root / "bolt/test/good/000.png").write_bytes(b"no image")
    assert run(["benchmark", str(root), "--out", str(tmp_path / "out"), *QUICK]) == 8
    shown, _ = capsys.readouterr()
    assert "bolt (resnet18, seed 0) failed: A test image cannot be read" in shown
    assert "nut" in shown


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["mvtec"], 3, "MVTec AD is not in"),
        (["mvtek"], 2, "Did you mean mvtec?"),
        (["TREE", "--category", "skrew"], 2, "Did you mean screw?"),
        (["TREE", "--weights", "nowhere.pth"], 5, "nowhere.pth"),
        (["TREE", "--epochs", "-1"], 2, "epochs"),
        (["TREE", "--model", "nowhere.safetensors"], 4, "nowhere.safetensors"),
        (["TREE", "--model", ".", "--epochs", "3"], 2, "--epochs does not go with --model"),
        (["TREE", "--model", ".", "--seed", "1"], 2, "--seed does not go with --model"),
        (["TREE", "--jobs", "0"], 2, "'--jobs' / '-j': it takes at least 1."),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(tree, tmp_path, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(tmp_path)
    assert run(["benchmark", *(str(tree) if word == "TREE" else word for word in words), "--quiet"]) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_named_give_the_figures_of_mvtecs_layout(tmp_path, capsys):
    root = make_tree(tmp_path / "tree", ["bolt"]) / "bolt"
    own = tmp_path / "own"
    own.mkdir()
    for old, new in {"train/good": "a", "test/good": "b", "test/spot": "c", "ground_truth/spot": "d"}.items():
        shutil.copytree(root / old, own / new)
    named = ["--train", "a", "--good", "b", "--bad", "c", "--masks", str(own / "d")]
    figures = []
    for number, words in enumerate(([str(root)], [str(own), *named])):
        assert run(["benchmark", *words, "--out", str(tmp_path / f"out{number}"), *QUICK, "--quiet", "--json"]) == 0
        (evaluation,) = json.loads(capsys.readouterr().out)["runs"]
        figures.append(
            [evaluation[name] for name in ("image_auroc", "pixel_auroc", "aupro", "threshold", "fpr", "recall")]
        )
    assert figures[0] == figures[1]
    assert run(["benchmark", str(own), "--out", str(tmp_path / "out"), *QUICK]) == 3
    shown = capsys.readouterr().err
    assert "it has the folders a, b, c, d" in shown
    assert "--good FOLDER --bad FOLDER --masks FOLDER" in shown
