"""Whether an image is like those that a model was trained on."""

from __future__ import annotations

from collections.abc import Iterator

from cfa_cli.notes import Misfit
from cfa_cli.records import ImageStatistics, TrainingImages

# How far beyond the training images' range an image may lie. Measured on seven real data sets, of whose good test
# images almost none lies beyond it, also where there are only 20 training images: examples/benchmarks/misfits.md.
ASPECT = 1.2  # times
SIDE = 1.5  # times, of the root of height times width
BRIGHTNESS = 0.2  # of the median, or
SPREADS = 3.0  # spreads, whichever is more
SHARPNESS = 1.5  # times


def find_misfits(image: ImageStatistics, training: TrainingImages) -> Iterator[Misfit]:
    """Say in what an image is not like those that the model was trained on."""
    sizes = f"{image.width} x {image.height} against {training.width} x {training.height} px"
    another_frame = False
    if not training.aspect_low / ASPECT <= image.height / image.width <= training.aspect_high * ASPECT:
        another_frame = True
        yield Misfit("of another aspect than the training images", sizes)
    area = image.height * image.width
    if training.pixels_low is not None and area * SIDE**2 < training.pixels_low:
        another_frame = True
        yield Misfit("far smaller than the training images", sizes)
    if training.pixels_high is not None and area > training.pixels_high * SIDE**2:
        another_frame = True
        yield Misfit("far larger than the training images", sizes)
    if image.grey and training.channels == "colour":
        yield Misfit("grey, where the training images are in colour")
    if not image.grey and training.channels == "grey":
        yield Misfit("in colour, where the training images are grey")
    margin = max(SPREADS * training.brightness_spread, BRIGHTNESS * training.brightness)
    yield from _compare(
        *("brightness", image.brightness, "far darker", "far brighter", margin),
        *(training.brightness_low, training.brightness_high),
    )
    if not another_frame and training.sharpness_low is not None and training.sharpness_high is not None:
        # Sharpness depends on the size; the margin is a ratio.
        low, high = training.sharpness_low, training.sharpness_high
        margin = low - low / SHARPNESS if image.sharpness < low else high * SHARPNESS - high
        yield from _compare("sharpness", image.sharpness, "far less sharp", "far sharper", margin, low, high)


def _compare(
    name: str, value: float, less: str, more: str, margin: float, low: float | None, high: float | None
) -> Iterator[Misfit]:
    if low is None or high is None or low - margin <= value <= high + margin:  # None: not recorded
        return
    word = less if value < low else more
    yield Misfit(f"{word} than the training images", f"{name} {value:.3g} against {low:.3g} to {high:.3g}")
