"""Runs that are killed, for real, and taken up again."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from tests.engine.trees import make_tree
from tests.results.runs import write_photograph

ROOT = Path(__file__).parents[2]
IMAGES = 60
WRITE = f"""
import sys
from pathlib import Path
from cfa_cli.results.pictures import KINDS
from cfa_cli.results.writer import ResultWriter
from tests.results.runs import make_bundle, make_prediction
with ResultWriter(Path(sys.argv[1]), make_bundle(), frozenset(KINDS), resume=True, workers=2) as writer:
    print("at work", flush=True)
    for index in range({IMAGES}):
        prediction = make_prediction(Path(f"in/{{index:03}}.png"), 1 + index / 100, f"{{index:03}}.png", (200, 200))
        if not writer.is_done(prediction.source):
            writer.write(prediction)
"""


def run(out, kill_at=None):
    """Make the run, or kill it soon after the table has so many rows."""
    with subprocess.Popen([sys.executable, "-c", WRITE, str(out)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"at work\n"
        while kill_at is not None and process.poll() is None:
            if (out / "scores.csv").read_bytes().count(b"\n") > kill_at:
                process.kill()
                break
        assert process.wait() in (0, -signal.SIGKILL)


def rows(out, name="scores.csv"):
    with (out / name).open(newline="") as file:
        return list(csv.DictReader(file))


def pictures(out):
    found = [path for path in out.rglob("*") if path.suffix in (".png", ".jpg", ".tiff")]
    return sorted(path for path in found if not path.name.startswith("."))


def test_a_run_killed_many_times_loses_nothing_and_does_nothing_twice(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    run(whole)
    chance, done = random.Random(0), []
    for _ in range(12):
        run(out, min(len(done) + chance.randint(0, 8), IMAGES))
        done = [row["path"] for row in rows(out)[:-1]]  # the last may be torn
        assert done == [f"in/{index:03}.png" for index in range(len(done))]
        listed = [row["path"] for row in rows(out, "regions.csv")]
        assert listed[: len(done) - 1] == done[1:]  # the first is not over the threshold
        assert len(listed) <= len(done) + 1
        for path in pictures(out):
            with Image.open(path) as picture:
                picture.load()  # raises where it is not whole
    run(out)
    for name in ("scores.csv", "regions.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert [path.relative_to(out) for path in pictures(out)] == [path.relative_to(whole) for path in pictures(whole)]
    assert not [name for _, _, names in os.walk(out) for name in names if name.startswith(".")]
    for mine, other in zip(pictures(out), pictures(whole), strict=True):
        assert mine.read_bytes() == other.read_bytes()


def test_of_two_runs_into_one_folder_one_wins_and_the_other_says_so(tmp_path):
    command = [sys.executable, "-c", WRITE, str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"at work\n"
        first.send_signal(signal.SIGSTOP)  # so that it is still at work, however slow the second starts
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        first.send_signal(signal.SIGCONT)
    assert first.returncode == 0
    assert second.returncode != 0
    assert second.stderr.splitlines()[-1].startswith("cfa_cli.errors.InputError: Another run is writing to ")
    assert [row["path"] for row in rows(tmp_path / "out")] == [f"in/{index:03}.png" for index in range(IMAGES)]


def test_predict_killed_and_resumed_gives_what_an_uninterrupted_run_gives(model, tmp_path):
    names = [f"{index:02}.png" for index in range(40)]
    for name in names:
        write_photograph(tmp_path / "in" / name, (400, 400))

    def start(out, *options):
        command = [sys.executable, "-m", "cfa_cli", "predict", tmp_path / "in", "--model", model, "--out", out]
        return subprocess.Popen([*command, "--save", "overlay,map", *options], stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait() == 0
    out = tmp_path / "killed"
    with start(out) as process:
        while not (out / "scores.csv").exists() or len(rows(out)) < 5:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert len(rows(out)) < len(names)
    assert start(out, "--resume").wait() == 0
    same = ("path", "score", "normalized", "threshold", "label", "error")
    assert [[row[name] for name in same] for row in rows(out)] == [
        [row[name] for name in same] for row in rows(tmp_path / "whole")
    ]
    assert [row["path"] for row in rows(out)] == [str(tmp_path / "in" / name) for name in names]
    for mine, other in zip(pictures(out), pictures(tmp_path / "whole"), strict=True):
        assert mine.read_bytes() == other.read_bytes()
    assert (out / "regions.csv").read_bytes() == (tmp_path / "whole" / "regions.csv").read_bytes()
    assert (out / "report.html").is_file()


def is_there(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_benchmark_in_several_processes_ends_them_on_ctrl_c_and_goes_on_from_there(tmp_path):
    categories, out = ["bolt", "nut", "pin", "rod"], tmp_path / "out"
    root = make_tree(tmp_path / "tree", categories)
    command = [sys.executable, "-m", "cfa_cli", "benchmark", root, "--out", out, "--jobs", "2"]
    command += ["--weights", "embedded", "--size", "64"]

    def finished():
        return [run["category"] for run in json.loads((out / "results.json").read_text())["runs"]]

    # A session of its own: Ctrl-C reaches all processes of a terminal's job, and none may outlive it.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
    ) as process:
        while not (out / "results.json").exists() or not finished():
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        told = process.communicate(timeout=30)[1]
        assert process.returncode == 130
    assert told.endswith("What is finished is kept: the same command goes on from there.\nError: Interrupted.\n")
    deadline = time.monotonic() + 10  # the system may take a moment to clear away what has ended
    while is_there(process.pid):
        assert time.monotonic() < deadline
    before = finished()
    assert len(before) < len(categories)
    told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert f"{len(before)} of {len(categories)} were done before." in told
    assert sorted(finished()) == categories
