"""Whatever becomes of stdout and stderr, the work is done, and the exit code is its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfa_cli import load_bundle
from cfa_cli.__main__ import run
from tests.conftest import write_part
from tests.engine.trees import make_tree

QUICK = ("--weights", "embedded", "--size", "32", "--epochs", "1")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and descriptors")


def start(*arguments: str, folder: Path, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, **options.pop("environment", {})}
    command = [sys.executable, "-m", "cfa_cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=False, **options)


@pytest.fixture(scope="module")
def here(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("streams")
    for number in range(3):
        write_part(folder / "good" / f"{number}.png", number)
    shutil.copy(model, folder / "cfa-model.safetensors")
    make_tree(folder / "tree", ["bolt"])
    return folder


COMMANDS = {
    "fit": (["fit", "good", "--out", "OUT", "--force", *QUICK], ""),
    "predict": (["predict", "good", "--out", "OUT", "--force"], "scores.csv"),
    "benchmark": (["benchmark", "tree", "--out", "OUT", "--force", *QUICK], "results.md"),
    "info": (["info", "--json"], None),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_gone_away_loses_messages_alone(here, tmp_path, name):
    """As `| head -1` does, with stderr too: at the start nobody reads."""
    arguments, written = COMMANDS[name]
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [str(tmp_path / "out") if each == "OUT" else each for each in arguments]
    done = start(*arguments, folder=here, stdout=writing, stderr=writing, environment={"PYTHONUNBUFFERED": "1"})
    os.close(writing)
    assert done.returncode == 0
    if written is not None:
        assert (tmp_path / "out" / written).is_file()


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&- 1>&- 2>&-", "1>/dev/full 2>/dev/full"])
def test_closed_and_full_streams(here, tmp_path, closed):
    if "full" in closed and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    for arguments, code in [(["info"], 0), (["info", "nothing"], 4), (["fit", "good", "-o", "OUT", *QUICK], 0)]:
        words = [str(tmp_path / "m.safetensors") if each == "OUT" else each for each in arguments]
        line = f'exec "$0" -m cfa_cli "$@" {closed}'
        done = subprocess.run(["sh", "-c", line, sys.executable, *words], cwd=here, check=False, capture_output=True)
        assert done.returncode == code, done
    load_bundle(tmp_path / "m.safetensors")  # nothing was printed into it


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "cp1252"},
        {},
    ],
    ids=["strict", "C", "cp1252", "usual"],
)
def test_file_names_that_are_no_text(here, tmp_path, environment):
    folder = os.fsdecode(b"n\xfcmmer \xe4\xb8\xad")  # the first character is no UTF-8, the last one is Chinese
    for number in range(3):
        write_part(tmp_path / folder / f"{number}.png", number)
    (tmp_path / folder / "cut.png").write_bytes(b"")
    options = {"folder": tmp_path, "environment": environment, "capture_output": True}
    done = start("fit", folder, *QUICK, "--out", f"{folder}/m.safetensors", **options)
    assert done.returncode == 8, done
    assert b"Error" not in done.stderr
    done = start("fit", folder, *QUICK, "--out", f"{folder}/m.safetensors", "--force", "--json", **options)
    assert done.returncode == 8, done
    document = json.loads(done.stdout)
    assert os.fsencode(document["model"]) == os.fsencode(f"{folder}/m.safetensors")
    assert [Path(each["path"]).name for each in document["skipped"]] == ["cut.png"]
    assert start("info", f"{folder}/m.safetensors", **options).returncode == 0
    missing = start("fit", f"{folder}x", "--json", **options)
    assert missing.returncode == 3
    assert json.loads(missing.stdout)["error"]["exit_code"] == 3
    assert missing.stderr.startswith(b"Starting ...\nError: There is no folder n\\udcfcmmer ")


def test_a_bug_with_such_names_is_told_and_logged(tmp_path):
    program = (
        "import sys, cfa_cli.bundle\n"
        "class Odd(Exception):\n    def __str__(self): raise ValueError\n"
        "def broken(*_): raise Odd\n"
        "cfa_cli.bundle.load_bundle = broken\n"
        "from cfa_cli.__main__ import main\nmain()"
    )
    name = os.fsdecode(b"\xff.safetensors")
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(
        [sys.executable, "-c", program, "info", name], cwd=tmp_path, env=environment, check=False, capture_output=True
    )
    assert done.returncode == 70
    assert b"This is a bug in cfa: " in done.stderr
    assert b"Traceback" not in done.stderr
    (log,) = tmp_path.rglob("*.log")
    assert "cfa info \\udcff.safetensors" in log.read_text()


def damaged_jpeg() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    content = bytearray(cv2.imencode(".jpg", pixels)[1].tobytes())
    content[3000:3003] = b"\x12\x34\x56"
    return bytes(content)


def test_what_libraries_print_is_in_the_log_and_not_on_the_terminal(here, tmp_path):
    """libjpeg prints a line about a damaged file; the command's own lines stay where they were."""
    (tmp_path / "a.jpg").write_bytes(damaged_jpeg())
    model = str(here / "cfa-model.safetensors")
    (tmp_path / "file").touch()
    for number, home in enumerate(["state", "file"]):  # no log can be written below a file: as it was before
        options = {"folder": tmp_path, "capture_output": True, "text": True}
        command = ["predict", "a.jpg", "nothing.jpg", "-m", model, "-o", f"out{number}", "--json"]
        environment = {"XDG_STATE_HOME": str(tmp_path / home)}
        done = start(*command, environment=environment, **options)
        assert (done.returncode, done.stderr.count("Error: There is no file or folder nothing.jpg.")) == (3, 1)
        command.remove("nothing.jpg")
        done = start(*command, environment=environment, **options)
        assert done.returncode == 0
        assert json.loads(done.stdout)["images"] == 1
        assert "Starting ..." in done.stderr
        assert ("Corrupt JPEG" in done.stderr) == (home == "file")
    (log,) = (tmp_path / "state").rglob("cfa.log")
    assert "Corrupt JPEG" in log.read_text()


def test_the_log_does_not_grow_for_ever_and_python_callers_keep_their_stderr(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = os.fstat(2)
    run(["info", "nothing"])
    assert os.fstat(2).st_ino == before.st_ino
    assert list(tmp_path.rglob("*.log")) == []
    program = "import os, sys, cfa_cli.cli.streams as s\ns.MAX_LOG_BYTES = 100\n"
    program += "with s.libraries_to_the_log(): os.write(2, b'x' * 80); print('seen', file=sys.stderr)\n"
    program += "os.write(2, b'again')"
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stderr == "seen\nagain"
    (log,) = tmp_path.rglob("*.log")
    assert log.stat().st_size == 80


def test_a_line_that_is_no_path_is_shortened_on_the_terminal_alone(here, tmp_path):
    line = "x" * 131_072
    command = ["predict", "-", "-m", str(here / "cfa-model.safetensors"), "-o", str(tmp_path / "out")]
    done = start(*command, folder=here, input=line, capture_output=True, text=True)
    assert done.returncode == 8
    assert "Cannot read xxx" in done.stdout
    assert max(map(len, (done.stdout + done.stderr).splitlines())) < 3000
    done = start(*command, "--json", "--force", folder=here, input=line, capture_output=True, text=True)
    assert json.loads(done.stdout)["path"] == line
