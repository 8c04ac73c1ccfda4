"""Score maps made visible: overlays, heatmaps, masks. One colour scale for all images of a model.

Scores become colours over [display_low, display_high] of the model's calibration: `display_low` is a typical good
pixel, and the pixel threshold lies in the middle. Opacity rises with the score, so that a good part shows as the plain
photograph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np

from cfa_cli.evidence import Calibration
from cfa_cli.geometry import resize_map
from cfa_cli.records import Bundle, Prediction
from cfa_cli.results.regions import mark, mark_reduced

CONTOUR = (0, 229, 255)  # cyan: the one strong hue that the colour map does not have
ANOMALOUS = (255, 106, 84)
GOOD = (96, 211, 120)
HATCH = 176  # grey: what is ignored has no colour of the scale
FONT = cv2.FONT_HERSHEY_DUPLEX
BAND = 64  # rows: low, so that boxes around what is painted hold little else
MIN_SIDE_FOR_LEGEND = 160  # px; on smaller images a legible legend would hide the part

# Inferno is perceptually uniform and stays distinguishable for colour-blind readers and in grey prints.
COLOURS: np.ndarray = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)[..., ::-1].copy()
# A pixel of value v becomes v * keep + tint. On light parts the colour has the opacity _ON_LIGHT; on dark parts, where
# it would be too dark to be seen, _ON_DARK: 1 - v / 255 times the difference is added, which keeps the formula's form.
CLEAR = 51  # up to here on the scale nothing is painted
_RAMP = np.clip((np.arange(256) - CLEAR) / (255 - CLEAR), 0, 1)[:, None, None]
_ON_LIGHT, _ON_DARK = 0.6 * _RAMP**0.8, 0.68 * _RAMP**0.5
_TINT = np.rint(COLOURS * _ON_DARK).astype(np.uint8)
_KEEP = np.rint(255 * (1 - _ON_LIGHT) - COLOURS * (_ON_DARK - _ON_LIGHT)).astype(np.uint8)


def scale_map(score_map: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Place scores on the model's colour scale: (h, w) uint8, 0 at `display_low`, 255 at `display_high`."""
    factor = 255 / _span(calibration)
    # One pass, rounded to the nearest and cut to 0..255.
    scaled = cv2.addWeighted(score_map, factor, score_map, 0, -calibration.display_low * factor, dtype=cv2.CV_8U)
    return np.asarray(scaled)


def _span(calibration: Calibration) -> float:
    return max(calibration.display_high - calibration.display_low, 1e-12)


def to_8_bit(image: np.ndarray) -> np.ndarray:
    """Return an RGB image as uint8. uint16 is at full scale, as the network sees it: nothing is brightened."""
    return image if image.dtype != np.uint16 else np.asarray(cv2.convertScaleAbs(image, alpha=1 / 257))


def draw_heatmap(score_map: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Paint a score map alone: (h, w, 3) uint8 RGB."""
    return np.asarray(cv2.applyColorMap(scale_map(score_map, calibration), COLOURS))


def blend(
    image: np.ndarray,
    score_map: np.ndarray,
    calibration: Calibration,
    mask: np.ndarray,
    ignored: np.ndarray | None = None,
) -> np.ndarray:
    """Paint a map (h, w) over its image (h, w, 3), with the contour of its regions, `mask` (h, w) uint8.

    What is `ignored`, (h, w) bool, is hatched. Returns (h, w, 3) uint8 RGB.
    """
    picture = image.copy() if image.dtype == np.uint8 else to_8_bit(image)
    scaled = scale_map(score_map, calibration)
    for rows in (slice(top, top + BAND) for top in range(0, len(image), BAND)):
        # Nothing is painted where scores are low, as they mostly are: the smallest box that holds the others will do.
        left, top, width, height = cv2.boundingRect((scaled[rows] > CLEAR).view(np.uint8))
        if width:
            box = np.s_[rows.start + top : rows.start + top + height, left : left + width]
            kept = cv2.multiply(picture[box], cv2.applyColorMap(scaled[box], _KEEP), scale=1 / 255)
            cv2.add(kept, cv2.applyColorMap(scaled[box], _TINT), dst=picture[box])
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if contours:
        line = _line_width(mask)
        if line > 1:  # a dark rim keeps the line visible on light parts; on a small image it would hide too much
            cv2.drawContours(picture, contours, -1, (0, 0, 0), 2 * line, cv2.LINE_AA)
        cv2.drawContours(picture, contours, -1, CONTOUR, line, cv2.LINE_AA)
    if ignored is not None:
        hatch(picture, ignored)
    return picture


def find_ignored(prediction: Prediction, bundle: Bundle, size: tuple[int, int]) -> np.ndarray | None:
    """Return what is ignored of an image, (h, w) bool for a size of (height, width) px; None if nothing is."""
    keep = bundle.tensors.get("keep") if prediction.keep is None else prediction.keep
    if keep is None or keep.all():
        return None
    return resize_map(1 - keep, bundle.geometry, size) > 0.5


def hatch(picture: np.ndarray, ignored: np.ndarray) -> None:
    """Hatch what is ignored, (h, w) bool, on a picture (h, w, 3) uint8, in place."""
    for row, on_line in _hatching(ignored):
        picture[row, ignored[row] & ~on_line] //= 2
        picture[row, on_line] = HATCH


def draw_hatching(ignored: np.ndarray) -> np.ndarray:
    """Draw the hatching of what is ignored, (h, w) bool, alone: (h, w, 4) uint8, to be laid over a picture."""
    picture = np.zeros((*ignored.shape, 4), np.uint8)
    picture[ignored, 3] = 128
    for row, on_line in _hatching(ignored):
        picture[row, on_line] = (HATCH, HATCH, HATCH, 255)
    return picture


def _hatching(ignored: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each row in which something is ignored, and which of its px lie on a line, (w,) bool."""
    period = max(6, round(math.sqrt(ignored.size) / 40))
    columns = np.arange(ignored.shape[1])
    for row in np.flatnonzero(ignored.any(axis=1)):
        yield int(row), ignored[row] & ((columns + row) % period < period // 3)


def _line_width(mask: np.ndarray) -> int:
    return max(1, round(math.sqrt(mask.size) / 350))


def draw_overlay(
    image: np.ndarray,
    score_map: np.ndarray,
    prediction: Prediction,
    calibration: Calibration,
    ignored: np.ndarray | None = None,
    marked: np.ndarray | None = None,
    legend: np.ndarray | None = None,
) -> np.ndarray:
    """Draw what an inspector wants to see: the photograph, what is unusual in it, the verdict and the colour scale.

    The verdict and the scale stand in a corner, unless all four have something marked: then they are left out.
    `image` (h, w, 3) RGB uint8 or uint16, `score_map` (h, w) float32 of the same size, and so is `ignored`, bool, which
    is hatched; `marked` is what `mark` makes of the map and `legend` what `draw_legend` draws, if these are known.
    Returns (h, w, 3) uint8 RGB.
    """
    mask = mark(score_map, calibration) if marked is None else marked
    picture = blend(image, score_map, calibration, mask, ignored)
    if legend is None:
        legend = draw_legend(prediction, calibration, (picture.shape[0], picture.shape[1]))
    if legend is not None and (corner := _free_corner(mask, legend.shape[:2])) is not None:
        top, left = corner
        place = picture[top : top + legend.shape[0], left : left + legend.shape[1]]
        cv2.addWeighted(legend, 0.85, place, 0.15, 0, dst=place)
    return picture


def draw_thumbnail(
    image: np.ndarray,
    score_map: np.ndarray | None,
    bundle: Bundle,
    side: int = 320,
    prediction: Prediction | None = None,
) -> np.ndarray:
    """A small picture of an image (h, w, 3), with what is unusual in it, unless `score_map` (network size) is None.

    What `prediction` ignores is hatched. Returns uint8 RGB, `side` px at its longer side, or as small as the image.
    """
    full = height, width = image.shape[0], image.shape[1]
    factor = min(1.0, side / max(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    if factor < 1:
        # Halves first: their means are taken ten times as quickly as those of other shares. A last odd px is left out.
        while min(height / size[0], width / size[1]) >= 2:
            height, width = height // 2, width // 2
            image = cv2.resize(image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    small = np.array(to_8_bit(image))  # a copy: the image is the caller's
    if score_map is None:
        return small
    small_map = resize_map(score_map, bundle.geometry, size)
    mask = mark_reduced(
        small_map, bundle.calibration, lambda: mark(resize_map(score_map, bundle.geometry, full), bundle.calibration)
    )
    ignored = None if prediction is None else find_ignored(prediction, bundle, size)
    return blend(small, small_map, bundle.calibration, mask, ignored)


def draw_legend(prediction: Prediction, calibration: Calibration, size: tuple[int, int]) -> np.ndarray | None:
    """Draw verdict and score over the colour scale, whose tick is the pixel threshold, for an image of (h, w) px.

    None where the image is too small for one.
    """
    if min(size) < MIN_SIDE_FOR_LEGEND or prediction.score is None:
        return None
    em = max(9, round(np.sqrt(size[0] * size[1]) / 34))  # height of a capital with its gap, px
    scale, line, gap = em / 30, max(1, em // 22), max(3, em // 2)
    anomalous = prediction.label == "anomalous"
    verdict = f"{'ANOMALOUS' if anomalous else 'GOOD'} {prediction.score:.3g}"
    ends = [
        f"{value:.3g}" for value in (calibration.display_low, calibration.pixel_threshold, calibration.display_high)
    ]
    widths = [cv2.getTextSize(text, FONT, scale * 0.8, line)[0][0] for text in ends]
    width = max(cv2.getTextSize(verdict, FONT, scale, line)[0][0], sum(widths) + 2 * gap)
    panel = np.full((em * 3 + gap * 2, width + gap * 2, 3), 24, np.uint8)

    def text(what: str, left: float, base: float, factor: float, colour: tuple[int, int, int]) -> None:
        cv2.putText(panel, what, (round(left), round(base)), FONT, scale * factor, colour, line, cv2.LINE_AA)

    text(verdict, gap, gap + em * 0.75, 1, ANOMALOUS if anomalous else GOOD)
    bar_top, bar_bottom = round(gap + em * 1.25), round(gap + em * 1.85)
    panel[bar_top:bar_bottom, gap : gap + width] = COLOURS[np.linspace(0, 255, width).astype(int), 0]
    tick = gap + round(
        width * min(max((calibration.pixel_threshold - calibration.display_low) / _span(calibration), 0), 1)
    )
    cv2.line(panel, (tick, bar_top - line), (tick, bar_bottom + line), CONTOUR, max(line, em // 12))
    grey = (225, 225, 225)
    base = gap + em * 2.85
    text(ends[0], gap, base, 0.8, grey)
    middle = min(max(tick - widths[1] / 2, gap + widths[0] + gap / 2), gap + width - widths[2] - gap / 2 - widths[1])
    text(ends[1], middle, base, 0.8, CONTOUR)
    text(ends[2], gap + width - widths[2], base, 0.8, grey)
    # A long thin image may be narrower than the text.
    factor = min(1.0, size[1] * 0.6 / panel.shape[1], size[0] * 0.3 / panel.shape[0])
    return (
        panel
        if factor == 1
        else np.asarray(cv2.resize(panel, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA))
    )


def _free_corner(mask: np.ndarray, size: tuple[int, int]) -> tuple[int, int] | None:
    """Top left px of the first corner where a legend of this size hides nothing of a marked region or its contour."""
    (height, width), (tall, wide) = mask.shape, size
    rim = 2 * _line_width(mask)
    for left in (0, width - wide):
        for top in (height - tall, 0):
            rows = slice(max(0, top - rim), top + tall + rim)
            if not mask[rows, max(0, left - rim) : left + wide + rim].any():
                return top, left
    return None
