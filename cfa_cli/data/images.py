"""One image file in, one RGB array out."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cfa_cli.errors import ImageError
from cfa_cli.records import MODEL_SUFFIXES

FORMATS = "PNG, JPEG, BMP, TIFF or WebP"
MIN_SIDE = 32  # px

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian; the second two are BigTIFF
# Depth is kept and EXIF orientation applied; IMREAD_UNCHANGED would skip the orientation. Alpha is dropped, as
# image data sets and their loaders have it: what counts is what the camera saw, and nearly all alpha is opaque.
# (8-bit TIFF is the exception: libtiff multiplies by alpha, so what is transparent there comes out black.)
# IMREAD_COLOR_RGB would save a pass, but leaves the memory of 16-bit RGB TIFFs unset (4.11 to 5.0).
_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH

# Damaged files are reported by ImageError; OpenCV would print its own lines into the progress bar as well.
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image(path: Path) -> np.ndarray:
    """The image at its source size: (h, w, 3) RGB, uint8 0..255 or, from a 16-bit file, uint16 0..65535.

    The content decides about the format, not the suffix. Grey, palette and CMYK become RGB, alpha is dropped, EXIF
    orientation is applied; of an animation or a stack of pages the first is read. The GIL is released while decoding,
    and any number of threads may read at once.
    Raises ImageError for what is missing, unreadable, empty, no image, cut off, damaged, floating-point, smaller than
    32 px a side or past OpenCV's 2^30 px (`OPENCV_IO_MAX_IMAGE_PIXELS` raises that limit).
    """
    data = _read(path)
    if not _is_image(data):
        raise _not_an_image(path, data)
    if data.startswith(_PNG):
        if data.rfind(_PNG_END) < 0:  # said here, before libpng prints its own line
            raise _cut_off(path)
        data = _without_profile(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
    except (cv2.error, MemoryError) as error:
        raise _undecodable(path, error) from error
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise _diagnose(path, data)
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(
            f"{path} is {width} x {height} px; at least {MIN_SIDE} px a side are needed.",
            "Scale it up, or leave it out.",
        )
    rgb: np.ndarray = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return rgb


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device would never end
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise ImageError(f"{path} is {kind}, not an image.")
        if status.st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes).", "Copy the file again from where it came from.")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"There is no file {path}.", "Check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"Cannot read {path}: {reason}.", "Check the file's permissions.") from error


def _is_image(data: bytes) -> bool:
    """Whether the first bytes are those of a supported format: OpenCV would try a dozen other decoders."""
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return webp or data.startswith((_PNG, b"\xff\xd8\xff", b"BM", *_TIFF))


def _not_an_image(path: Path, data: bytes) -> ImageError:
    if path.suffix.lower() in MODEL_SUFFIXES or data[8:10] in (b'{"', b"{ "):  # safetensors: length, JSON
        return ImageError(f"{path} is a model, not an image.", f"Give it with --model {path}")
    return ImageError(
        f"{path} is not an image that cfa reads ({FORMATS}).", "Convert it to PNG or JPEG, or leave it out."
    )


def _cut_off(path: Path) -> ImageError:
    return ImageError(f"{path} is cut off: its end is missing.", "Copy the file again from where it came from.")


def _without_profile(png: bytes) -> bytes:
    """The same PNG without its colour profile: unused here, and libpng prints a warning for a slightly wrong one."""
    start = len(_PNG)
    while (kind := png[start + 4 : start + 8]) not in (b"", b"IDAT"):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")  # length, type, data, checksum
        if kind == b"iCCP":
            return png[:start] + png[end:]
        start = end
    return png


def _undecodable(path: Path, error: Exception) -> ImageError:
    if "CV_IO_MAX_IMAGE" in str(error):
        return ImageError(
            f"{path} has more pixels than can be read (2^30).",
            "Cut it into tiles, or set the environment variable OPENCV_IO_MAX_IMAGE_PIXELS.",
        )
    if isinstance(error, MemoryError) or getattr(error, "code", 0) == cv2.Error.StsNoMem:
        return ImageError(f"{path} does not fit into memory.", "Cut it into tiles or scale it down.")
    return ImageError(f"{path} is damaged, or of a kind that OpenCV does not read.", "Save it again as PNG.")


def _diagnose(path: Path, data: bytes) -> ImageError:
    """Why decoding gave nothing, as closely as can be told."""
    if data.startswith(_TIFF):
        try:
            values: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            values = None
        if values is not None and values.dtype not in (np.uint8, np.uint16):
            return ImageError(
                f"{path} holds {values.dtype} values; 8-bit and 16-bit images are read.",
                "Save it as 16-bit PNG or TIFF, with one range of values for all images.",
            )
    if data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-1024:]:  # trailing bytes are common
        return _cut_off(path)
    if data.startswith(b"RIFF") and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return _cut_off(path)
    return ImageError(
        f"{path} is damaged, cut off, or of a kind that OpenCV does not read.",
        "Copy the file again from where it came from, or save it again as PNG.",
    )
