"""Users' type checkers see the package's types (PEP 561): wrong use is found, right use is not."""

import subprocess
import sys
import venv
from pathlib import Path

import cfa_cli

USE = """
from cfa_cli import FitConfig, fit, load_bundle, predict

result = fit("parts", FitConfig(epochs=3, bank="ema"))
bundle = load_bundle("model.safetensors")
names = [prediction.source.name for prediction in predict(bundle, ["parts"])]
"""
MISUSE = """
FitConfig(epochs="three")
FitConfig(bank="k-means")
load_bundle(5)
predict(5, ["parts"])
result.bundel
names.append(5)
"""


def test_a_users_type_checker_sees_the_types(tmp_path: Path) -> None:
    """As installed: found in a virtual environment's site-packages, where types count only beside a `py.typed`."""
    builder = venv.EnvBuilder()
    builder.create(tmp_path / "venv")
    python = builder.ensure_directories(tmp_path / "venv").env_exe
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    Path(packages, "cfa.pth").write_text(str(Path(cfa_cli.__file__).parents[1]), encoding="utf-8")
    (tmp_path / "user.py").write_text(USE + MISUSE, encoding="utf-8")
    mypy = [sys.executable, "-m", "mypy", "--python-executable", python, "--config-file=", "user.py"]
    done = subprocess.run(mypy, capture_output=True, text=True, check=False, cwd=tmp_path)
    first = len(USE.splitlines()) + 1
    wrong = [int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error: " in line]
    assert wrong == list(range(first + 1, first + len(MISUSE.splitlines()))), done.stdout + done.stderr
