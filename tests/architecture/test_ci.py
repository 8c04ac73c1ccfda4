"""Continuous integration runs the commands that the README shows, and the README shows one command for both shells."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")


def unix_command() -> str:
    """As .ci/run takes it from the README."""
    (line,) = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("test_command=")]
    done = subprocess.run(
        ["bash", "-c", f'{line}; printf "%s" "$test_command"'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def windows_command() -> str:
    """As the workflow takes it from the README; .NET's expressions and Python's agree in this one."""
    (pattern,) = re.findall(r"-notmatch '(.*)'\)", WORKFLOW)
    return re.search(pattern, README)[1].strip()


@pytest.mark.skipif(os.name != "posix", reason="bash")
def test_both_shells_run_one_command() -> None:
    command = unix_command()
    assert ".venv/bin/python -m pytest" in command
    words = command.replace("python3 ", "python ").replace(" &&", ";").replace("/bin/", r"\Scripts" + "\\")
    assert windows_command() == words
