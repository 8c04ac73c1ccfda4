"""What the tests share: small images, a small model, and the command run within the test's process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

# Tests run side by side: one thread each is quickest, in the commands that they start too. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

GOOD_IMAGES = 24
SIZE = (64, 64)  # of the small model's input, px


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches and logs of the tests, not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield


def draw_part(number: int, defect: bool = False, size: tuple[int, int] = (72, 80)) -> np.ndarray:
    """A striped part, (h, w, 3) BGR uint8, each number with its own noise and light.

    A defect is a bright square; of 72 x 80 px it covers rows 36 to 49 and columns 20 to 33.
    """
    rng = np.random.default_rng(number)
    stripes = 25 * np.sin(np.arange(80) / 4)[None, :, None]
    part = 110 + 2 * (number % 5) + stripes + rng.normal(0, 4, (72, 80, 3))
    if defect:
        part[36:50, 20:34] = (20, 240, 250)
    part = part.clip(0, 255).astype(np.uint8)
    return part if size == (72, 80) else cv2.resize(part, size[::-1], interpolation=cv2.INTER_LINEAR)


def write_part(path: Path, number: int, defect: bool = False, size: tuple[int, int] = (72, 80)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, draw_part(number, defect, size))[1].tobytes())
    return path


@pytest.fixture(scope="session")
def good_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good images, some of them in a subfolder. Not to be written to."""
    folder = tmp_path_factory.mktemp("parts") / "good"
    for number in range(GOOD_IMAGES):
        write_part(folder / ("late" if number % 4 == 3 else "") / f"{number:03}.png", number)
    return folder


@pytest.fixture(scope="session")
def fitted(good_dir: Path):  # type: ignore[no-untyped-def]
    """What `fit` made of the good images: 19 to train on and 5 held out."""
    from cfa_cli import FitConfig, fit

    return fit(good_dir, FitConfig(weights="embedded", size=SIZE, epochs=2, max_fpr=0.25, seed=1))


@pytest.fixture(scope="session")
def model(fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    """The model as a file. Not to be written to."""
    from cfa_cli import save_bundle

    path = tmp_path_factory.mktemp("model") / "part.safetensors"
    save_bundle(fitted.bundle, path)
    return path


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def cfa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command in `tmp_path`: cfa("fit", folder, "--epochs", 1). What other code prints is seen as well."""
    from cfa_cli.__main__ import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return call


def assert_refused(outcome: Outcome, code: int, message: str, hint: str) -> None:
    """One sentence, a hint and the exit code; nothing on stdout and no traceback."""
    lines = [line for line in outcome.err.splitlines() if not line.startswith(("Starting", "Warning:"))]
    assert outcome.code == code, outcome
    assert [line.split(":")[0] for line in lines] == ["Error", "Hint"], outcome.err
    assert message in lines[0]
    assert lines[0].endswith(".")
    assert hint in lines[1]
    assert outcome.out == ""
