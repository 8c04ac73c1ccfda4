"""Imports point down, and the terminal starts without the heavy libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cfa_cli

ROOT = Path(cfa_cli.__file__).parent
FLOORS = {"errors": 0, "config": 0, "records": 0, "text": 0}
FLOORS |= {"atomic": 1, "bundle": 1, "geometry": 1, "data": 1, "model": 1, "results": 1, "weights": 1}
FLOORS |= {"engine": 2, "cli": 3, "__main__": 4}
ROOMS = ("data", "model", "results", "weights")  # of floor 1: none of them imports another
HEAVY = ("torch", "cv2", "sklearn", "timm", "torchvision", "scipy")


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module in ("cfa_cli", *(f"cfa_cli.{name}" for name in FLOORS)):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "cfa_cli" and len(parts) > 1 and parts[1] in FLOORS:
                yield parts[1]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    own = room(path)
    if own == "__init__":  # the public names, resolved lazily
        return
    for other in imported_rooms(path):
        assert FLOORS[other] <= FLOORS[own], f"{path} imports {other}"
        if own in ROOMS and other in ROOMS:
            assert other == own, f"{path} imports {other}"
        if own == "cli":
            assert other != "model", f"{path} imports {other}"


def test_files_can_be_read_in_one_sitting():
    long = {p.name: n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 330}
    assert not long


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fit", "--help"], ["predict", "--help"]])
def test_help_loads_no_heavy_library(arguments):
    code = (
        "import sys\nfrom cfa_cli.__main__ import run\n"
        f"code = run({arguments!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_public_names():
    assert cfa_cli.__all__ == [
        "Bundle",
        "CfaError",
        "FitConfig",
        "FitResult",
        "Prediction",
        "fit",
        "load_bundle",
        "predict",
        "save_bundle",
    ]
    for name in cfa_cli.__all__:
        assert getattr(cfa_cli, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = cfa_cli.nothing
