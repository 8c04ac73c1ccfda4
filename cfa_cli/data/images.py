"""One image file in, one RGB array out."""

from __future__ import annotations

import os
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cfa_cli.bands import swap_red_and_blue
from cfa_cli.data import png
from cfa_cli.data.files import file_limit, read_file
from cfa_cli.data.headers import Header, read_header
from cfa_cli.errors import ImageError
from cfa_cli.records import FORMATS, MAX_PIXELS, MODEL_SUFFIXES

MIN_SIDE = 32  # px
MAX_CHANNELS = 4
FULL_SCALES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))  # values as cameras store them are kept
LARGE = 16_000_000  # px: larger images are decoded one at a time, so that threads do not hold several of them
# Depth is kept and EXIF orientation applied; IMREAD_UNCHANGED, by which alpha is read, leaves the orientation to us.
# IMREAD_COLOR_RGB would save a pass, but leaves the memory of 16-bit RGB TIFFs unset (4.11 to 5.0).
_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
_AGAIN = "Copy the file again from where it came from, or save it again as PNG."

_large_image = threading.Lock()

# Damaged files are reported by ImageError; OpenCV would print its own lines into the progress bar as well.
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image(path: Path, max_pixels: float = MAX_PIXELS) -> np.ndarray:
    """The image at its source size: (h, w, 3) RGB, uint8 0..255 or, from a file of more than 8 bits, uint16 as stored.

    The content decides about the format, not the suffix. Grey, palette and CMYK become RGB, and EXIF orientation is
    applied; of an animation or a stack of pages the first is read. What is transparent lies on black: that is what a
    premultiplied file holds already, so that images that look the same are the same, whatever colours hide below the
    alpha. The GIL is released while decoding, and any number of threads may read at once.

    path: the file.
    max_pixels: megapixels; a file that claims more is not decoded.
    Raises ImageError for what is missing, unreadable, no regular file, empty, no image, cut off, damaged,
    floating-point, smaller than 32 px a side or larger than `max_pixels`.
    """
    data = read_file(path, limit=file_limit(max_pixels))
    if not data:
        raise ImageError(f"{path} is empty (0 bytes).", "Copy the file again from where it came from.")
    try:
        if data.startswith(png.SIGNATURE):
            data = png.clean(data)
        header = read_header(data)
    except ValueError as error:
        kind = "cut off" if "end is missing" in str(error) or "cut off" in str(error) else "damaged"
        raise ImageError(f"{path} is {kind}: {error}.", _AGAIN) from error
    if header is None:
        raise _not_an_image(path, data)
    _check(path, header, max_pixels)
    with _large_image if max(header.width * header.height, header.tile) > LARGE else nullcontext():
        image = _decode(path, data, header)
        swap_red_and_blue(image)
        return image


def image_size(path: Path) -> tuple[int, int]:
    """Return an image's height and width, px, upright, by its header. Raises ImageError."""
    try:
        header = read_header(read_file(path, file_limit(MAX_PIXELS)))
    except ValueError:
        header = None
    if header is None:  # reading it says what is wrong
        height, width = read_image(path).shape[:2]
        return height, width
    turned = header.orientation >= 5
    return (header.width, header.height) if turned else (header.height, header.width)


def _check(path: Path, header: Header, max_pixels: float) -> None:
    """Raise ImageError for a file whose header says that it cannot be read."""
    width, height = header.width, header.height
    if min(width, height) <= 0:
        raise ImageError(f"{path} is damaged: its header says {width} x {height} px.", _AGAIN)
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{path} is {width} x {height} px; at least {MIN_SIDE} px a side are needed.",
            "Scale it up, or leave it out.",
        )
    if max(width * height, header.tile) > max_pixels * 1e6:
        raise ImageError(
            f"{path} is {width} x {height} px by its header, {max(width * height, header.tile) / 1e6:,.0f} megapixels; "
            f"the limit is {max_pixels:g}.",
            "If it really is that large, raise the limit with --max-pixels.",
        )
    if header.channels > MAX_CHANNELS:
        raise ImageError(f"{path} has {header.channels} channels; grey and RGB are read.", "Save it as RGB.")
    if header.format == "TIFF" and header.channels == 2:
        raise ImageError(f"{path} is a grey TIFF with alpha, which is not read.", "Save it as PNG.")


def _decode(path: Path, data: bytes, header: Header) -> np.ndarray:
    """Return (h, w, 3) BGR, uint8 or uint16, upright and without alpha."""
    try:
        if header.format == "PNM":
            return _decode_pnm(data, header)
        image = _decode_alpha(data, header) if header.alpha != "none" else None
        if image is None:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
    except (cv2.error, MemoryError, ValueError) as error:
        raise _undecodable(path, error) from error
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise _diagnose(path, data, header)
    if sorted(image.shape[:2]) != sorted((header.width, header.height)):
        raise ImageError(f"{path} is damaged: its parts are of different sizes.", _AGAIN)
    if header.white_is_zero and image.dtype == np.uint16:  # 8-bit ones are inverted by the decoder
        np.invert(image, out=image)
    return image


def _decode_alpha(data: bytes, header: Header) -> np.ndarray | None:
    """Decode what may be transparent, on black; None if there is nothing to do that the usual way does not."""
    if header.alpha == "premultiplied":  # it is on black as it is
        return None
    image: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is not None and header.transparent is not None:
        opaque = (image != header.transparent) * np.asarray(-1).astype(image.dtype)
        image = np.dstack([image, image, image, opaque])
    if image is None or image.ndim != 3 or image.shape[2] != 4 or image.dtype not in (np.uint8, np.uint16):
        return None
    colours, alpha = np.ascontiguousarray(image[..., :3]), image[..., 3]
    full = 255 if image.dtype == np.uint8 else 65535
    unused = header.format == "BMP" and not alpha.any()  # some writers leave it 0
    if not unused and int(alpha.min()) < full:
        for row, weights in zip(colours, alpha, strict=True):  # row by row: whole images would need 4 times the memory
            row[:] = (row.astype(np.uint32) * weights[:, None] + full // 2) // full
    return colours if header.format == "TIFF" else _turn(colours, header.orientation)


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Bring an image upright: `orientation` is EXIF's, 1 to 8."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _decode_pnm(data: bytes, header: Header) -> np.ndarray:
    """Decode binary PGM and PPM: OpenCV swaps the bytes of 16 bits, and does not scale to the file's own maximum."""
    count = header.width * header.height * header.channels
    kind: np.dtype[Any] = np.dtype("u1" if header.bits == 8 else ">u2")
    if len(data) - header.offset < count * kind.itemsize:
        raise ValueError("cut off")
    stored = np.frombuffer(data, kind, count, header.offset).reshape(header.height, header.width, header.channels)
    full = 2**header.bits - 1
    image: np.ndarray = stored.astype(kind.newbyteorder("="))
    if (header.bits == 8 and header.full_scale != full) or header.full_scale not in FULL_SCALES:
        image = np.rint(stored * (full / header.full_scale)).clip(0, full).astype(image.dtype)
    return np.repeat(image, 3, axis=2) if header.channels == 1 else np.ascontiguousarray(image[..., ::-1])


def _not_an_image(path: Path, data: bytes) -> ImageError:
    if path.suffix.lower() in MODEL_SUFFIXES or data[8:10] in (b'{"', b"{ "):  # safetensors: length, JSON
        return ImageError(f"{path} is a model, not an image.", f"Give it with --model {path}")
    return ImageError(
        f"{path} is not an image that cfa reads ({FORMATS}).", "Convert it to PNG or JPEG, or leave it out."
    )


def _cut_off(path: Path) -> ImageError:
    return ImageError(f"{path} is cut off: its end is missing.", "Copy the file again from where it came from.")


def _undecodable(path: Path, error: Exception) -> ImageError:
    if "cut off" in str(error):
        return _cut_off(path)
    if "CV_IO_MAX_IMAGE" in str(error):
        return ImageError(
            f"{path} has more pixels, or a longer side, than OpenCV reads (2^30 px, 2^20 px a side).",
            "Cut it into tiles, or set the environment variables OPENCV_IO_MAX_IMAGE_PIXELS, _WIDTH and _HEIGHT.",
        )
    if isinstance(error, MemoryError) or getattr(error, "code", 0) == cv2.Error.StsNoMem:
        return ImageError(f"{path} does not fit into memory.", "Cut it into tiles or scale it down.")
    return ImageError(f"{path} is damaged, or of a kind that OpenCV does not read.", "Save it again as PNG.")


def _diagnose(path: Path, data: bytes, header: Header) -> ImageError:
    """Why decoding gave nothing, as closely as can be told."""
    if header.format == "TIFF":
        try:
            values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            values = None
        if values is not None and values.dtype not in (np.uint8, np.uint16):
            return ImageError(
                f"{path} holds {values.dtype} values; 8-bit and 16-bit images are read.",
                "Save it as 16-bit PNG or TIFF, with one range of values for all images.",
            )
    if header.format == "JPEG" and b"\xff\xd9" not in data[-1024:]:  # trailing bytes are common
        return _cut_off(path)
    if header.format == "WebP" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return _cut_off(path)
    return ImageError(f"{path} is damaged, cut off, or of a kind that OpenCV does not read.", _AGAIN)
