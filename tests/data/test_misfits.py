"""Images that are not like the training images: scored, and said."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfa_cli import predict
from cfa_cli.data.misfits import find_misfits
from cfa_cli.data.statistics import measure, summarise
from cfa_cli.records import TrainingImages
from tests.conftest import Outcome, draw_part, write_part


def like(pictures: list[np.ndarray]) -> TrainingImages:
    return summarise([measure(picture) for picture in pictures], 8)


def part(number: int, size: tuple[int, int] = (288, 320)) -> np.ndarray:
    return draw_part(number, size=size)


def grey(picture: np.ndarray) -> np.ndarray:
    return np.repeat(picture.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)


PARTS = [part(number) for number in range(20)]
KINDS: dict[str, tuple[list[np.ndarray], np.ndarray, list[str]]] = {
    "the same": (PARTS, part(30), []),
    "a little darker": (PARTS, (part(30) * 0.9).astype(np.uint8), []),
    "a thumbnail": (
        PARTS,
        part(30, (64, 72)),
        ["far smaller than the training images (72 x 64 against 320 x 288 px)"],
    ),
    "four times as large": (
        PARTS,
        part(30, (1152, 1280)),
        ["far larger than the training images (1280 x 1152 against 320 x 288 px)"],
    ),
    "wider by a third": (
        PARTS,
        part(30, (288, 427)),
        ["of another aspect than the training images (427 x 288 against 320 x 288 px)"],
    ),
    "wider by a tenth": (PARTS, part(30, (288, 352)), []),
    "turned": (
        PARTS,
        np.rot90(part(30, (288, 427))),
        ["of another aspect than the training images (288 x 427 against 320 x 288 px)"],
    ),
    "grey": (PARTS, grey(part(30)), ["grey, where the training images are in colour"]),
    "colour": ([grey(p) for p in PARTS], part(30), ["in colour, where the training images are grey"]),
    "mixed": ([*PARTS, grey(part(1))], grey(part(30)), []),
    "dark": (PARTS, part(30) // 3, ["far darker than the training images"]),
    "bright": (PARTS, part(30) // 2 + 128, ["far brighter than the training images"]),
    "blurred": (PARTS, cv2.GaussianBlur(part(30), (0, 0), 4), ["far less sharp than the training images"]),
    "noisy": (
        PARTS,
        (part(30) + np.random.default_rng(0).normal(0, 30, (288, 320, 3))).clip(0, 255).astype(np.uint8),
        ["far sharper than the training images"],
    ),
}


@pytest.mark.parametrize(("training", "image", "said"), KINDS.values(), ids=KINDS)
def test_each_kind_is_told(training: list[np.ndarray], image: np.ndarray, said: list[str]) -> None:
    found = [str(misfit) for misfit in find_misfits(measure(image), like(training))]
    assert len(found) == len(said), found
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True)), found


def test_what_varies_in_training_may_vary(tmp_path: Path) -> None:
    """Sizes, brightness and sharpness within the training images' range fit, and a little beyond."""
    varied = [part(i, (100 + 20 * i, 120 + 20 * i)) // (1 + i % 4) for i in range(20)]
    model = like(varied)
    for picture in varied:
        assert list(find_misfits(measure(picture), model)) == []
    (misfit,) = find_misfits(measure(part(30, (40, 46))), model)
    assert misfit.what == "far smaller than the training images"


def test_a_batch_that_does_not_fit_is_one_note_with_its_count(
    cfa: Callable[..., Outcome], model: Path, tmp_path: Path
) -> None:
    """Grey thumbnails of another aspect through a model of colour parts: in the table, JSON, the report and a note."""
    for number in range(30):
        write_part(tmp_path / "batch" / f"{number:02}.png", number, size=(64, 40))
        write_part(tmp_path / "mixed" / f"{number:02}.png", number)
    write_part(tmp_path / "mixed/odd.png", 3, size=(36, 40))
    tall = "of another aspect than the training images (40 x 64 against 80 x 72 px)"
    note = "30 of 30 images are " + tall
    outcome = cfa("predict", "batch", "-m", model, "--json")
    assert outcome.code == 0
    assert outcome.err.count("Warning: 30 of 30") == 1
    assert note in outcome.err
    document = json.loads(outcome.out)
    assert document["misfits"] == {"of another aspect than the training images": 30}
    assert {result["misfit"] for result in document["results"]} == {tall}
    with (tmp_path / "maps/scores.csv").open(newline="") as file:
        assert {row["misfit"] for row in csv.DictReader(file)} == {tall}
    report = (tmp_path / "maps/report.html").read_text()
    assert note in report
    assert report.count(tall) == 31

    def odd(outcome: Outcome) -> bool:
        return "1 of 31 images is far smaller than the training images (40 x 36 against 80 x 72 px)." in outcome.err

    assert odd(cfa("predict", "mixed", "-m", model, "-o", "second"))
    # A run that is taken up counts what it found before.
    assert odd(cfa("predict", "mixed", "-m", model, "-o", "second", "--resume"))
    grey_frame: Any = grey(draw_part(1))
    (prediction,) = predict(model, grey_frame)
    assert prediction.misfit == "grey, where the training images are in colour"
    assert prediction.score is not None
