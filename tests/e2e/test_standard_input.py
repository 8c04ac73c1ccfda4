"""`cfa predict -`, as a process of its own whose input stays open."""

import json
import subprocess
import sys

from tests.results.runs import write_photograph


def test_each_path_is_answered_before_the_next_is_given(model, tmp_path):
    write_photograph(tmp_path / "small.png", (64, 64))
    write_photograph(tmp_path / "large.png", (80, 80))
    command = [sys.executable, "-m", "cfa_cli", "predict", "-", "--model", model, "--json", "--max-pixels", "0.0045"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as process:
        lines = []
        for name in ("small.png", "large.png", "nothing.png", "small.png", tmp_path / "small.png"):
            print(name, file=process.stdin, flush=True)
            if len(lines) < 3:  # the last two are the first once more
                lines.append(json.loads(process.stdout.readline()))
        rest, _ = process.communicate(timeout=60)
    assert [line["path"] for line in lines] == ["small.png", "large.png", "nothing.png"]
    assert [line["error"] is None for line in lines] == [True, False, False]
    assert "0.0045" in lines[1]["error"]
    assert (rest, process.returncode) == ("", 8)
