"""FLOOR 0, how small a defect can be and still be found: what is lost where images are reduced."""

from __future__ import annotations

from dataclasses import dataclass

from cfa_cli.config import MAX_SIDE, Size
from cfa_cli.records import Bundle

# Measured: drawn squares of 25 % contrast are found where they are as large as this in the network's input; at half of
# it some are (examples/benchmarks/smallest_defect.md).
VISIBLE_SIDE = 4.0  # px of the network's input
NOTABLE = 1.5  # times that images are reduced, or that a larger size sees less: below it, nothing need be said
STEP = 4  # times as many px a side: the larger size that is offered


@dataclass(frozen=True)
class Visibility:
    """What can be seen of images that are notably reduced to the network's input."""

    reduction: float  # px of the image to one of the input, along the side that is reduced more
    smallest_defect: float  # px of the image, of a square's side
    sentence: str  # for people, with the size that sees more


def visibility(bundle: Bundle) -> Visibility | None:
    """Tell what a model cannot see; None where images are hardly reduced, or their size was not recorded."""
    if bundle.training is None:
        return None
    source, size = (bundle.training.height, bundle.training.width), bundle.geometry.size
    reduction = _reduction(source, size)
    if reduction < NOTABLE:
        return None
    sentence = (
        f"Images of {source[1]} x {source[0]} px are reduced to {size[1]} x {size[0]} (width x height): defects below "
        f"about {_about(VISIBLE_SIDE * reduction)} px will be missed"
    )
    option, larger = _larger(source, size)
    smaller, slower = _reduction(source, larger), larger[0] * larger[1] / (size[0] * size[1])
    if smaller < reduction / NOTABLE:
        sentence += f"; --size {option} sees {_about(VISIBLE_SIDE * smaller)} px, {slower:.2g} times slower"
    return Visibility(reduction, VISIBLE_SIDE * reduction, f"{sentence}.")


def _reduction(source: Size, size: Size) -> float:
    return max(source[0] / size[0], source[1] / size[1])


def _larger(source: Size, size: Size) -> tuple[str, Size]:
    """Return the larger size to offer, as an option and in px: `STEP` times the sides, at most the images' own."""
    larger = size[0] * STEP, size[1] * STEP
    if larger[0] < source[0] and larger[1] < source[1] and max(larger) <= MAX_SIDE:
        return f"{larger[0]}x{larger[1]}", larger
    scale = min(1.0, MAX_SIDE / max(source))
    return "full", (round(source[0] * scale), round(source[1] * scale))


def _about(pixels: float) -> int:
    return round(pixels) if pixels < 20 else 5 * round(pixels / 5)
