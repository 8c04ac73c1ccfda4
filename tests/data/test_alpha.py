"""What is transparent lies on black: images that look the same are the same, whatever hides below the alpha."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from cfa_cli.data.images import read_image
from cfa_cli.errors import ImageError
from tests.data.files import encode, png_chunk, scene, tiff

ALPHA = np.tile(np.linspace(0, 255, 60).round().astype(np.uint8), (40, 1))
ON_BLACK = np.rint(scene() * (ALPHA[..., None] / 255)).astype(int)
HIDDEN = np.where(ALPHA[..., None] == 0, np.uint8(77), scene())  # other colours where nothing is seen


def read(tmp_path: Path, data: bytes) -> np.ndarray:
    path = tmp_path / "image"
    path.write_bytes(data)
    return read_image(path)


def png_16(samples: np.ndarray, colour: int) -> bytes:
    """A 16-bit PNG of (h, w, n) uint16."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in samples.astype(">u2"))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def bmp(rgba: np.ndarray) -> bytes:
    return cv2.imencode(".bmp", cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))[1].tobytes()


def rgba(colours: np.ndarray) -> np.ndarray:
    return np.dstack([colours, ALPHA])


def premultiplied(full: int) -> np.ndarray:
    return np.dstack([np.rint(scene() / 255 * (ALPHA[..., None] / 255) * full), ALPHA / 255.0 * full])


WRITERS = {
    "png": lambda c: encode(Image.fromarray(rgba(c)), "PNG"),
    "png, 16 bit": lambda c: png_16(rgba(c).astype(np.uint16) * 257, 6),
    "webp": lambda c: encode(Image.fromarray(rgba(c)), "WEBP", lossless=True, exact=True),
    "bmp": lambda c: bmp(rgba(c)),
    "tiff": lambda c: tiff(rgba(c), photometric=2, extra=2),
    "tiff, 16 bit": lambda c: tiff(rgba(c).astype(np.uint16) * 257, photometric=2, extra=2),
    "tiff, alpha not named": lambda c: tiff(rgba(c), photometric=2),
    "tiff, premultiplied": lambda c: tiff(premultiplied(255).astype(np.uint8), photometric=2, extra=1),
    "tiff, premultiplied, 16 bit": lambda c: tiff(premultiplied(65535).astype(np.uint16), photometric=2, extra=1),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_same_picture_is_the_same_array(tmp_path: Path, writer: str) -> None:
    write = WRITERS[writer]
    image = read(tmp_path, write(scene()))
    scale = 257 if image.dtype == np.uint16 else 1
    assert image.dtype == (np.uint16 if "16" in writer else np.uint8)
    assert np.abs(image / scale - ON_BLACK).max() <= (0.51 if scale > 1 else 0)
    np.testing.assert_array_equal(read(tmp_path, write(HIDDEN)), image)


def test_opaque_alpha_changes_nothing(tmp_path: Path) -> None:
    opaque = np.dstack([scene(), np.full((40, 60), 255, np.uint8)])
    for data in (encode(Image.fromarray(opaque), "PNG"), bmp(opaque), tiff(opaque, photometric=2, extra=2)):
        np.testing.assert_array_equal(read(tmp_path, data), scene())
    empty = np.dstack([scene(), np.zeros((40, 60), np.uint8)])
    np.testing.assert_array_equal(read(tmp_path, bmp(empty)), scene())  # writers that leave the fourth byte at 0
    np.testing.assert_array_equal(read(tmp_path, tiff(empty, photometric=2, extra=0)), scene())  # not said to be alpha


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_with_alpha(tmp_path: Path, bits: int) -> None:
    both = np.dstack([scene()[..., 0], ALPHA])
    full = 2**bits - 1
    data = encode(Image.fromarray(both, "LA"), "PNG") if bits == 8 else png_16(both.astype(np.uint16) * 257, 4)
    image = read(tmp_path, data)
    assert np.abs(image / (full / 255) - ON_BLACK[..., :1]).max() <= 0.51
    with pytest.raises(ImageError, match="is a grey TIFF with alpha, which is not read"):
        read(tmp_path, tiff(both, photometric=1, extra=2))


def test_transparency_of_palettes_and_of_single_colours(tmp_path: Path) -> None:
    palette = Image.fromarray(scene()).quantize(16)
    shades = bytes(range(0, 256, 17))
    expected = np.array(palette.convert("RGB")) * (np.frombuffer(shades, np.uint8)[np.array(palette)] / 255)[..., None]
    image = read(tmp_path, encode(palette, "PNG", transparency=shades))
    np.testing.assert_array_equal(image, np.rint(expected))

    hole = tuple(int(v) for v in scene()[5, 7])
    image = read(tmp_path, encode(Image.fromarray(scene()), "PNG", transparency=hole))
    np.testing.assert_array_equal(image, np.where((scene() == hole).all(axis=2, keepdims=True), 0, scene()))

    grey = scene()[..., 0].copy()
    image = read(tmp_path, encode(Image.fromarray(grey), "PNG", transparency=int(grey[0, 9])))
    np.testing.assert_array_equal(image[..., 1], np.where(grey == grey[0, 9], 0, grey))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_alpha_and_orientation_together(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(rgba(scene())), kind, exif=exif, **options)
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGBA")).astype(float)
    image = read(tmp_path, data)
    assert image.shape == upright[..., :3].shape
    np.testing.assert_array_equal(image, np.rint(upright[..., :3] * (upright[..., 3:] / 255)))


def test_16_bit_tiff_with_alpha_is_upright(tmp_path: Path) -> None:
    samples = rgba(scene()).astype(np.uint16) * 257
    upright = np.rot90(read(tmp_path, tiff(samples, photometric=2, extra=2)), -1)
    np.testing.assert_array_equal(read(tmp_path, tiff(samples, photometric=2, extra=2, orientation=6)), upright)


@pytest.mark.parametrize("bits", [8, 16])
def test_white_is_zero_is_no_negative(tmp_path: Path, bits: int) -> None:
    grey = scene()[..., 0].astype(np.uint8 if bits == 8 else np.uint16) * (1 if bits == 8 else 257)
    image = read(tmp_path, tiff(np.invert(grey), photometric=0))
    np.testing.assert_array_equal(image[..., 0], grey)
    np.testing.assert_array_equal(image, read(tmp_path, tiff(grey, photometric=1)))
