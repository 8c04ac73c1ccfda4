"""Masks of defects: which pixels of a test image show one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cfa_cli.data.files import file_limit, read_file
from cfa_cli.data.headers import read_header
from cfa_cli.data.images import image_size
from cfa_cli.errors import ImageError, InputError
from cfa_cli.records import MAX_PIXELS

LABELS = 16  # a mask of more values than these, or of fainter ones than a 16th of the largest, has soft edges
NEARLY_ALL = 0.9  # share of the pixels past which a mask is taken to be inverted
_ASPECT_TOLERANCE = 0.02  # relative
_AGAIN = "Copy the data set again."


def read_mask(path: Path) -> np.ndarray:
    """Read a defect's mask: (h, w) uint8, 1 on the defect and 0 elsewhere.

    Of two values the larger is the defect, of a few every one but the smallest (kinds of defects). Soft edges, as JPEG
    makes them of sharp ones, are cut at half the maximum. Where all colours are the same the mask is in the alpha
    channel; else what is transparent is no defect.

    Raises ImageError if it is no image or cannot be read, and InputError if it marks nothing or over 90 % of the
    pixels: it is empty or inverted, and all figures would be nonsense.
    """
    return _read(path)[0]


def check_masks(pairs: Sequence[tuple[Path, Path]]) -> tuple[str, ...]:
    """Read the masks of images, for what is wrong with them; return what is unusual about them, a sentence each.

    pairs: (image, mask). Of an image only the header is looked at.
    Raises what `read_mask` and `require_fit` raise, and ImageError for an image that cannot be read.
    """
    in_alpha = 0
    for image, path in pairs:
        mask, alpha = _read(path)
        in_alpha += alpha
        require_fit(path, mask, image_size(image))
    if not in_alpha:
        return ()
    return (f"{in_alpha} of {len(pairs)} masks were read from their alpha channel: their colours show nothing.",)


def require_fit(path: Path, mask: np.ndarray, size: tuple[int, int]) -> None:
    """Raise InputError for a mask of another shape than its image: it may be of another size alone.

    path: the mask's, for the message.
    mask: (h, w).
    size: of the image, (height, width) in px.
    """
    height, width = mask.shape
    if abs(height * size[1] / (width * size[0]) - 1) > _ASPECT_TOLERANCE:
        raise InputError(
            f"The mask {path} ({width} x {height} px) does not fit its image ({size[1]} x {size[0]} px).",
            "Copy the data set again.",
        )


def marks_something(path: Path) -> bool:
    """Tell whether a mask marks any pixel: data sets give good images an empty one. Raises ImageError."""
    return bool(read_values(path)[0].any())


def _read(path: Path) -> tuple[np.ndarray, bool]:
    """Return a mask, and whether it was in the alpha channel."""
    values, lossy, in_alpha = read_values(path)
    smallest, largest = int(values.min()), int(values.max())
    if smallest == largest:
        what = "everything" if largest else "nothing"
        raise InputError(f"The mask {path} marks {what}: all its pixels are {largest}.", "Draw it anew, or remove it.")
    mask = cut_mask(values, lossy)
    if (share := float(mask.mean())) > NEARLY_ALL:
        raise InputError(
            f"The mask {path} marks {share:.0%} of its image: it seems to be inverted.",
            "The defect must be white and the rest black.",
        )
    return mask, in_alpha


def cut_mask(values: np.ndarray, lossy: bool) -> np.ndarray:
    """Tell the larger from the smaller of a mask's values (h, w): 1 and 0, uint8; of soft edges, at half the maximum.

    lossy: whether the file's format has losses.
    """
    stored = np.unique(values)
    largest = int(stored[-1])
    soft = lossy or len(stored) > LABELS or (len(stored) > 2 and largest > LABELS * int(stored[stored > 0][0]))
    mask: np.ndarray = (values > (largest // 2 if soft else int(stored[0]))).astype(np.uint8)
    return mask


def read_values(path: Path) -> tuple[np.ndarray, bool, bool]:
    """Return the values (h, w) uint8 or uint16 that tell the defect; whether they have losses, and are alpha's."""
    data = read_file(path, file_limit(MAX_PIXELS))
    try:
        header = read_header(data)
        if header is None or header.width * header.height > MAX_PIXELS * 1e6:
            raise ValueError("no mask")
        buffer = np.frombuffer(data, np.uint8)
        colours = cv2.imdecode(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        alpha = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED) if header.alpha != "none" else None
    except (cv2.error, ValueError) as error:
        raise ImageError(f"The mask {path} is no image, or damaged.", _AGAIN) from error
    if colours is None or colours.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"The mask {path} is no image, or damaged.", _AGAIN)
    values: np.ndarray = colours.max(axis=2)
    in_alpha = False
    if alpha is not None and alpha.ndim == 3 and alpha.shape[2] == 4 and alpha.shape[:2] == values.shape:
        opacity = alpha[..., 3]
        if opacity.min() < opacity.max():
            in_alpha = bool(values.min() == values.max())
            values = opacity if in_alpha else np.where(opacity > opacity.max() // 2, values, 0)
    lossy = header.format == "JPEG" or (header.format == "WebP" and b"VP8 " in data[:1024])
    return values, lossy, in_alpha
