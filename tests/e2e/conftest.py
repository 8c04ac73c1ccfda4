import subprocess
import sys

import pytest

from tests.files.results import write_photograph


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model of four noise images, made by the command itself."""
    folder = tmp_path_factory.mktemp("model")
    for index in range(4):
        write_photograph(folder / "good" / f"{index}.png", (64, 64))
    path = folder / "cfa-model.safetensors"
    options = ["--weights", "embedded", "--size", "64", "--epochs", "1", "--out", path]
    subprocess.run([sys.executable, "-m", "cfa_cli", "fit", folder / "good", *options], check=True, capture_output=True)
    return path
