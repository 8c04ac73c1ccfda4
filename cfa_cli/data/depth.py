"""How many bits 16-bit files really hold: cameras of 10, 12 and 14 bits store their values in 16.

Read as 16 bit they would be up to 64 times too dark. The depth is recognised once, over all images that a model is
trained on, and kept with the model: a single image cannot tell a dark 12-bit picture from a 10-bit one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from cfa_cli.data import png
from cfa_cli.data.files import file_limit, read_file
from cfa_cli.data.headers import read_header
from cfa_cli.data.images import read_image
from cfa_cli.errors import ImageError
from cfa_cli.notes import Misfit
from cfa_cli.records import MAX_PIXELS, TrainingImages

DEPTHS = (8, 10, 12, 14, 16)  # bits
OUTLIERS = 1e-5  # share of values that may lie over the full scale: stuck pixels; they are cut to it


@dataclass(frozen=True, slots=True)
class _Values:
    """What 16-bit images hold."""

    count: int
    over: tuple[int, ...]  # how many values need more bits than each of DEPTHS
    used: int  # the bits that any value has set

    def __add__(self, other: _Values) -> _Values:
        over = tuple(a + b for a, b in zip(self.over, other.over, strict=True))
        return _Values(self.count + other.count, over, self.used | other.used)


def recognise_depth(paths: Sequence[Path], max_pixels: float = MAX_PIXELS) -> int:
    """Return the bits a channel of a set of images: 8 if none is a 16-bit file, else what those files hold.

    It is the smallest of 8, 10, 12, 14 and 16 bits that covers all values but 1 in 100,000. Values that are shifted
    to the left (12 bit times 16) use the whole scale already and are 16 bit. Only 16-bit files are decoded; what
    cannot be read is left out.
    """
    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as pool:
        found = [values for values in pool.map(lambda path: _look(path, max_pixels), paths) if values is not None]
    return _depth(reduce(_Values.__add__, found)) if found else 8


def widen(image: np.ndarray, bit_depth: int) -> np.ndarray:
    """Spread `bit_depth`-bit values of an image (h, w, 3) uint16 over 0..65535; uint8 is returned as it is.

    The upper bits are repeated below, so that 0 and the full scale map exactly and no step is lost; larger values are
    cut to the full scale. Not in place.
    """
    if image.dtype != np.uint16 or bit_depth >= 16:
        return image
    cut = np.minimum(image, np.uint16(2**bit_depth - 1))
    return np.asarray((cut << (16 - bit_depth)) | (cut >> (2 * bit_depth - 16)))


def to_full_scale(image: np.ndarray, training: TrainingImages | None) -> tuple[np.ndarray, Misfit | None]:
    """Bring an image to the full scale of its type, by the depth of the images that a model was trained on.

    image: (h, w, 3) RGB, uint8 or uint16 as a file holds it.
    training: of the model; None if it is of an earlier version, which read all files as 16 bit.
    Returns the image, and in what its values do not fit the model's.
    """
    if image.dtype != np.uint16:
        return image, None
    if training is None:
        held = _depth(_count(image))
        return image, None if held == 16 else Misfit(
            f"16-bit files of {held}-bit values, which this model, of an earlier version, reads as 16 bit: they may be "
            "too dark, and to fit it again has their depth recognised"
        )
    if training.bit_depth == 8:
        depth = _nearest(image, training.brightness)
        return widen(image, depth), Misfit(
            f"16-bit files, where the training images have 8 bit: they are read as {depth} bit, by their brightness"
        )
    return widen(image, training.bit_depth), _misfit(image, training)


def _misfit(image: np.ndarray, training: TrainingImages) -> Misfit | None:
    depth, values = training.bit_depth, _count(image)
    if depth < 16 and values.over[DEPTHS.index(depth)] > OUTLIERS * values.count:
        return Misfit(
            f"16-bit files with values over {2**depth - 1}, white for this model, trained on {depth}-bit values: they "
            "are cut to it"
        )
    near = _nearest(image, training.brightness)
    if near < depth:
        return Misfit(
            f"16-bit files that look like {near}-bit values; the model was trained on {depth}-bit ones and reads them "
            "so: they may be too dark"
        )
    return None


def _nearest(image: np.ndarray, brightness: float) -> int:
    """Return the depth that covers an image's values and gives it the brightness nearest to `brightness`, by ratio."""
    smallest, mean = _depth(_count(image)), float(image.mean())
    if not mean or not brightness:
        return smallest
    fitting = [depth for depth in DEPTHS if depth >= smallest]
    return min(fitting, key=lambda depth: abs(math.log(mean / (2**depth - 1) / brightness)))


def _look(path: Path, max_pixels: float) -> _Values | None:
    try:
        image = read_image(path, max_pixels) if _is_deep(path, max_pixels) else None
    except ImageError:
        return None  # reported when all images are read
    return None if image is None or image.dtype != np.uint16 else _count(image)


def _is_deep(path: Path, max_pixels: float) -> bool:
    """Whether a file has 16 bits a channel. It is read whole only where its beginning does not tell."""
    head = read_file(path, file_limit(max_pixels), size=32)
    if head.startswith(png.SIGNATURE):
        return head[24:25] == b"\x10"
    if head.startswith((b"II", b"MM")):
        try:
            header = read_header(read_file(path, file_limit(max_pixels)))
        except ValueError:
            return False
        return header is not None and header.bits == 16
    return head.startswith((b"P5", b"P6"))


def _count(image: np.ndarray) -> _Values:
    largest = int(image.max())
    over = tuple(int(np.count_nonzero(image >> depth)) if largest >> depth else 0 for depth in DEPTHS[:-1])
    return _Values(image.size, (*over, 0), int(np.bitwise_or.reduce(image, axis=None)))


def _depth(values: _Values) -> int:
    if not values.used:
        return 16
    depth = next(depth for depth, over in zip(DEPTHS, values.over, strict=True) if over <= OUTLIERS * values.count)
    unused = (values.used & -values.used).bit_length() - 1  # low bits that no value has set
    # Left-aligned camera values have their low bits unused. 8-bit pictures brought to `depth` bits have them too.
    left_aligned = unused >= 2 and depth - unused != 8
    return 16 if left_aligned else depth
