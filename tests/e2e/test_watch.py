"""`cfa predict --watch`, as a process of its own."""

import csv
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.results.runs import write_photograph

CFA = [sys.executable, "-m", "cfa_cli"]


@contextmanager
def watching(model, inbox, *options):
    """A running `cfa predict --watch`, once it is at work."""
    command = [*CFA, "predict", "--watch", inbox, "--out", inbox / "maps", "--model", model, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while "Watching" not in (line := process.stderr.readline()):
                assert line, "it ended"
            yield process
        finally:
            process.kill()


def end(process, number):
    process.send_signal(number)
    return process.wait(60)


def rows(inbox):
    with (inbox / "maps" / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_each_image_gets_its_row_and_its_line(model, tmp_path, number):
    write_photograph(tmp_path / "before.png", (64, 64))
    with watching(model, tmp_path, "--json") as process:
        first = json.loads(process.stdout.readline())
        assert first["path"] == str(tmp_path / "before.png")
        seconds = []
        for index in range(8):
            path = tmp_path / "sub" / f"{index}.png"
            write_photograph(path, (64, 64))
            start = time.perf_counter()
            line = json.loads(process.stdout.readline())
            seconds.append(time.perf_counter() - start)
            # The line comes after the row, and the row after the files.
            assert line["path"] == rows(tmp_path)[-1]["path"] == str(path)
            assert line["score"] == pytest.approx(float(rows(tmp_path)[-1]["score"]))
            assert (tmp_path / "maps" / "overlays" / "sub" / f"{index}.png").is_file()
        assert statistics.median(seconds) < 2 * line["milliseconds"] / 1000 + 0.25  # the machine may be busy
        assert end(process, number) == 0
    assert len(rows(tmp_path)) == 9
    assert (tmp_path / "maps" / "report.html").is_file()


def test_it_goes_on_where_it_was_killed(model, tmp_path):
    write_photograph(tmp_path / "a.png", (64, 64))
    with watching(model, tmp_path) as process:
        assert str(tmp_path / "a.png") in process.stdout.readline()
        assert end(process, signal.SIGKILL) == -signal.SIGKILL
    write_photograph(tmp_path / "b.png", (64, 64))  # while nobody watches
    with watching(model, tmp_path, "--resume", "--max-pixels", "0.0045") as process:
        assert str(tmp_path / "b.png") in process.stdout.readline()
        write_photograph(tmp_path / "large.png", (80, 80))
        assert "0.0045" in process.stdout.readline()
        assert end(process, signal.SIGTERM) == 8
    assert [Path(row["path"]).name for row in rows(tmp_path)] == ["a.png", "b.png", "large.png"]
    assert [bool(row["error"]) for row in rows(tmp_path)] == [False, False, True]


def test_the_folder_may_go_and_come_back(model, tmp_path):
    inbox, out = tmp_path / "inbox", tmp_path / "maps"
    inbox.mkdir()
    with watching(model, inbox, "--out", out) as process:
        for turn in range(2):
            shutil.rmtree(inbox)
            inbox.mkdir()
            write_photograph(inbox / f"{turn}.png", (64, 64))
            assert str(inbox / f"{turn}.png") in process.stdout.readline()
        assert end(process, signal.SIGINT) == 0


def test_images_and_a_folder_to_watch_exclude_each_other(tmp_path):
    for arguments in ([tmp_path, "--watch", tmp_path], []):
        result = subprocess.run([*CFA, "predict", *arguments], capture_output=True, text=True)
        assert result.returncode == 2
        assert "--watch" in result.stderr
