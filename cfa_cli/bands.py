"""Large images in bands of rows: what is made of a band is small, where a further copy of the whole would not be."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

BAND = 200_000  # px: as float32 RGB, such a band lies in a processor's cache


def bands_of(shape: tuple[int, ...]) -> Iterator[slice]:
    """Return the rows of each band of an image of this shape (height, width, ...)."""
    step = max(1, BAND // shape[1])
    return (slice(top, min(top + step, shape[0])) for top in range(0, shape[0], step))


def swap_red_and_blue(image: np.ndarray) -> None:
    """Turn RGB (h, w, 3) into BGR, or back, in place."""
    for rows in bands_of(image.shape):
        cv2.cvtColor(image[rows], cv2.COLOR_RGB2BGR, dst=image[rows])  # of a whole image it makes a copy first
