"""The main job as a user does it: processes of their own, on a machine without network or caches."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cfa_cli import load_bundle
from tests.conftest import write_part

ROOT = Path(__file__).parents[2]
CFA = [str(Path(sys.executable).with_name("cfa"))]


@pytest.fixture
def fresh(tmp_path, good_dir, monkeypatch):
    """A working folder with good/ and new/ images; nothing in any cache, and no network to ask."""
    shutil.copytree(good_dir, tmp_path / "good")
    write_part(tmp_path / "new" / "fine.png", 200)
    write_part(tmp_path / "new" / "night shift" / "scratched.png", 201, defect=True)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments, code=0):
    done = subprocess.run([*CFA, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done
    return done


def test_fit_predict_info(fresh):
    fitted = run("fit", "good", "--size", "64", "--epochs", "3", "--max-fpr", "0.2")
    # There is no network: the weights that come with cfa are used, and this is never forgotten.
    warning = "Warning: The ImageNet weights could not be had"
    assert warning in fitted.stderr
    assert "19 to train on, 5 held out" in fitted.stdout
    assert load_bundle("cfa-model.safetensors").backbone.weights == "embedded"

    predicted = run("predict", "new", "--fail-on-anomaly", code=1)
    assert warning in predicted.stderr
    with Path("maps/scores.csv").open(newline="", encoding="utf-8") as file:
        found = {row["path"]: row["label"] for row in csv.DictReader(file)}
    assert found == {"new/fine.png": "good", "new/night shift/scratched.png": "anomalous"}
    assert Path("maps/overlays/night shift/scratched.png").exists()
    assert "The ImageNet weights could not be had" in Path("maps/report.html").read_text("utf-8")

    document = json.loads(run("info", "--json").stdout)
    assert document["backbone"]["warning"].startswith("The ImageNet weights could not be had")
    assert {path.name for path in fresh.iterdir()} - {"home"} == {"cfa-model.safetensors", "good", "maps", "new"}


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_during_training_leaves_nothing(fresh):
    command = [*CFA, "fit", "good", "--size", "32", "--epochs", "1000000", "--weights", "embedded", "--verbose"]
    with subprocess.Popen([*command, "--out", "out/model.safetensors"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("building the bank"):  # is done: it trains
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.splitlines()[-1] == "Error: Interrupted."
    assert "Traceback" not in rest
    left = [
        path for path in fresh.rglob("*") if path.is_file() and path.relative_to(fresh).parts[0] not in ("good", "new")
    ]
    assert left == []


def test_the_readmes_python(tmp_path, good_dir, monkeypatch, capsys):
    """Its blocks, run as they stand, on fewer and smaller images at the paths that they name."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for path in re.findall(r'"(examples/[^"]+)"', "".join(blocks)):
        assert (ROOT / path).is_dir()
    (tmp_path / "examples/parts/train").mkdir(parents=True)
    shutil.copytree(good_dir / "late", tmp_path / "examples/parts/train/good")
    write_part(tmp_path / "examples/parts/test/bad.png", 1, defect=True)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "bad.png" in capsys.readouterr().out
