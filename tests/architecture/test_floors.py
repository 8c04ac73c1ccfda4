"""Imports point down, and the terminal starts without the heavy libraries."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cfa_cli
from tests.conftest import write_part

ROOT = Path(cfa_cli.__file__).parent
FLOORS = {"errors": 0, "config": 0, "records": 0, "evidence": 0, "notes": 0, "text": 0, "parsing": 0, "intervals": 0}
FLOORS |= {"visibility": 0, "separation": 0, "atomic": 1, "bands": 1, "bundle": 1, "download": 1, "geometry": 1}
FLOORS |= {"data": 1, "model": 1, "results": 1, "weights": 1}
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


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["-V"], ["fit", "--help"], ["predict", "--help"]])
def test_help_loads_no_heavy_library(arguments):
    code = (
        "import sys\nfrom cfa_cli.__main__ import run\n"
        f"code = run({arguments!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


# Each takes longer to import than an image to score; torch._dynamo is what torch needs on its meta device.
NOT_FOR_PREDICTING = (
    "timm",
    "torchvision",
    "sklearn",
    "scipy",
    "sympy",
    "torch._dynamo",
    "torch.onnx",
    "huggingface_hub",
)


def test_predict_with_a_plain_resnet_loads_no_more_than_it_needs_and_asks_no_driver(model, good_dir, tmp_path):
    code = (
        "import sys, torch\nfrom cfa_cli.__main__ import run\n"
        "def asked(*arguments): sys.exit('a driver was asked')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.backends.mps.is_available = asked\n"
        f"code = run(['predict', {str(good_dir)!r}, '--model', {str(model)!r}, '--device', 'cpu', '--quiet'])\n"
        f"print([name for name in {NOT_FOR_PREDICTING!r} if name in sys.modules], code)\n"
        "import gc\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000)"  # what was imported is not looked through at the end
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout.splitlines()[-2:] == ["[] 0", "True True"], done.stderr
    assert (tmp_path / "maps" / "report.html").exists()


MISTAKES = [  # (command line, exit code)
    ("fit nothing", 3),
    ("fit empty", 3),
    ("fit .", 3),
    ("fit nothing --each", 3),
    ("fit empty --each", 3),
    ("fit photos --out here.txt", 3),
    ("fit photos --epochs many", 2),
    ("fit photos --epochs -1", 2),
    ("fit photos --size abc", 2),
    ("fit photos --device abacus", 2),
    ("fit photos --bank median", 2),
    ("fit photos --weights nothing.pth", 5),
    ("predict nothing", 3),
    ("predict photos --model nothing.safetensors", 4),
    ("predict photos --sav map", 2),
    ("predict photos --threshold nan", 2),
    ("predict photos --max-fpr 1.5", 2),
    ("predict --watch photos --threshold 0", 2),
    ("predict", 2),
    ("benchmark mvtec", 3),
    ("benchmark mvtec --download", 2),
    ("benchmark mpdd --download --yes", 2),
    ("benchmark photos", 3),
    ("benchmark mvtek", 2),
    ("benchmark mvtec --jobs 0", 2),
    ("benchmark . --model nothing.safetensors", 4),
    ("info nothing", 4),
    ("calibrate nothing photos --out new", 4),
    ("calibrate model.onnx photos --out new", 4),
    ("calibrate here.txt --out new", 2),
    ("calibrate here.txt nothing --out new", 3),
    ("calibrate here.txt photos", 2),
    ("export --model nothing.safetensors", 4),
    ("export --model here.txt --out .", 2),
    ("export --model here.txt --opset 3", 2),
    ("export --model here.txt --quantize photos", 2),
    ("fti", 2),
]


def test_mistakes_are_told_without_heavy_libraries(tmp_path):
    """So each is told at once: importing torch alone takes seconds."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "here.txt").touch()
    for number in range(2):
        write_part(tmp_path / "photos" / f"{number}.png", number)
        write_part(tmp_path / "train" / "good" / f"{number}.png", number)
    (tmp_path / "test").mkdir()
    code = (
        "import sys, time\nfrom cfa_cli.__main__ import run\n"
        f"for line in {[line for line, _ in MISTAKES]!r}:\n"
        "    start = time.process_time()\n"
        "    code = run(line.split())\n"
        f"    print(line, code, [name for name in {HEAVY!r} if name in sys.modules], time.process_time() - start < 0.5)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.splitlines() == [f"{line} {code} [] True" for line, code in MISTAKES]


def test_public_names():
    assert cfa_cli.__all__ == [
        "Bundle",
        "CalibrateResult",
        "CfaError",
        "FitConfig",
        "FitResult",
        "Model",
        "PredictSummary",
        "Prediction",
        "Predictions",
        "ResultWriter",
        "calibrate",
        "fit",
        "fit_each",
        "load_bundle",
        "open_model",
        "predict",
        "save_bundle",
    ]
    for name in cfa_cli.__all__:
        assert getattr(cfa_cli, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = cfa_cli.nothing
