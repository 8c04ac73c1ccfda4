"""Images that are in memory already, like a camera's frames: checked as files are, and brought to the same form."""

from __future__ import annotations

import numpy as np

from cfa_cli.data.images import MIN_SIDE
from cfa_cli.errors import ImageError


def check_array(array: object, name: str) -> np.ndarray:
    """Return a copy of an array as an image, (h, w, 3) RGB, uint8 or uint16; grey (h, w) becomes RGB.

    Raises ImageError if it is of another type or shape, or smaller than 32 px a side.
    """
    if not isinstance(array, np.ndarray):
        raise ImageError(
            f"{name} is of type {type(array).__name__}, neither an array nor a path.",
            "Give NumPy arrays, (height, width, 3) RGB or (height, width) grey.",
        )
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"{name} holds {array.dtype} values; an image array is uint8 (0 to 255) or uint16 (0 to 65535).",
            "Scale and convert it, for example (255 * image).round().astype(numpy.uint8).",
        )
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise ImageError(
            f"{name} has shape {array.shape}; an image array is (height, width, 3) RGB or (height, width) grey.",
            "Leave out an alpha channel; put the channels last.",
        )
    height, width = array.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(
            f"{name} is {width} x {height} px; at least {MIN_SIDE} px a side are needed.",
            "Scale it up, or leave it out.",
        )
    # A copy: a camera may write its next frame into the same memory.
    return np.array(array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2), order="C")
