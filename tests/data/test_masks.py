"""Masks of every kind that people draw give the same pixels, and those that mark nothing or everything are refused."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cfa_cli.data.masks import check_masks, read_mask
from cfa_cli.errors import ImageError, InputError
from tests.data.files import encode

TRUE = np.zeros((60, 80), np.uint8)
cv2.circle(TRUE, (25, 30), 9, 1, -1)
TRUE[5:20, 50:70] = 1
NOISE = np.random.default_rng(0).integers(0, 255, TRUE.shape, np.uint8)
HIDDEN = np.dstack([np.where(TRUE, np.uint8(200), NOISE)] * 3 + [TRUE * 255])


def with_alpha(colour: int) -> np.ndarray:
    return np.dstack([np.full((60, 80, 3), colour, np.uint8), TRUE * 255])


def palette() -> Image.Image:
    image = Image.fromarray(TRUE, "P")
    image.putpalette([0, 0, 0, 128, 0, 0])
    return image


def jpeg(quality: int) -> bytes:
    return encode(Image.fromarray(TRUE * 255), "JPEG", quality=quality)


MASKS = {
    "0 and 255": encode(Image.fromarray(TRUE * 255), "PNG"),
    "0 and 1": encode(Image.fromarray(TRUE), "PNG"),
    "1 and 2": encode(Image.fromarray(TRUE + 1), "PNG"),
    "16 bit": cv2.imencode(".png", TRUE.astype(np.uint16) * 300)[1].tobytes(),
    "1 bit": encode(Image.fromarray(TRUE * 255).convert("1"), "PNG"),
    "palette": encode(palette(), "PNG"),
    "kinds of defects": encode(Image.fromarray(np.where(np.arange(80) > 40, TRUE * 3, TRUE)), "PNG"),
    "one channel": encode(Image.fromarray(np.dstack([TRUE * 0, TRUE * 0, TRUE * 9])), "PNG"),
    "bmp": encode(Image.fromarray(TRUE * 255), "BMP"),
    "tiff": encode(Image.fromarray(TRUE * 255), "TIFF"),
    "black, alpha": encode(Image.fromarray(with_alpha(0)), "PNG"),
    "white, alpha": encode(Image.fromarray(with_alpha(255)), "PNG"),
    "white, alpha, webp": encode(Image.fromarray(with_alpha(255)), "WEBP", lossless=True, exact=True),
    "opaque": encode(Image.fromarray(np.dstack([TRUE * 255] * 3 + [np.full_like(TRUE, 255)])), "PNG"),
    "hidden colours": encode(Image.fromarray(HIDDEN), "PNG"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_lossless_masks_are_exact(tmp_path: Path, kind: str) -> None:
    path, image = tmp_path / "mask", tmp_path / "image.png"
    path.write_bytes(MASKS[kind])
    image.write_bytes(MASKS["0 and 255"])
    np.testing.assert_array_equal(read_mask(path), TRUE)
    notes = str(check_masks([(image, path)]))
    assert ("1 of 1 masks were read from their alpha channel" in notes) is ("alpha" in kind)


@pytest.mark.parametrize("quality", [40, 75, 95])
def test_jpeg_does_not_make_more_regions(tmp_path: Path, quality: int) -> None:
    path = tmp_path / "mask.jpg"
    path.write_bytes(jpeg(quality))
    noisy = np.array(Image.open(io.BytesIO(jpeg(quality))))
    assert cv2.connectedComponents((noisy > 0).astype(np.uint8))[0] - 1 != 2, "any value but 0 would count"
    mask = read_mask(path)
    assert cv2.connectedComponents(mask)[0] - 1 == 2
    assert (mask != TRUE).mean() < 0.01
    path.write_bytes(encode(Image.fromarray(noisy), "PNG"))  # the same values, saved without further losses
    np.testing.assert_array_equal(read_mask(path), mask)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (TRUE * 0, r"mask\.png marks nothing: all its pixels are 0"),
        (TRUE * 0 + 255, r"mask\.png marks everything: all its pixels are 255"),
        (255 - TRUE * 255 * (np.arange(80) < 40), r"mask\.png marks 9\d% of its image: it seems to be inverted"),
        (np.dstack([TRUE * 0] * 4), r"mask\.png marks nothing"),
    ],
)
def test_a_mask_that_marks_nothing_or_everything_is_named(tmp_path: Path, mask: np.ndarray, sentence: str) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(encode(Image.fromarray(mask), "PNG"))
    with pytest.raises(InputError, match=sentence):
        read_mask(path)


def test_what_is_no_mask(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    for content in (b"", b"text", MASKS["0 and 255"][:60], b"P5 90000 90000 255\n"):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"mask\.png is no image, or damaged"):
            read_mask(path)
    with pytest.raises(ImageError, match="There is no file"):
        read_mask(tmp_path / "gone.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_a_mask_of_another_shape_than_its_image_is_named(tmp_path: Path, kind: str) -> None:
    """An image lies as its EXIF orientation says; a mask may be smaller, but not of another aspect."""
    mask, image = tmp_path / "mask.png", tmp_path / "image"
    mask.write_bytes(MASKS["0 and 255"])
    exif = Image.Exif()
    for size, turn, fits in [
        ((160, 120), 1, True),
        ((120, 160), 1, False),
        ((120, 160), 6, True),
        ((160, 120), 6, False),
    ]:
        exif[0x0112] = turn
        if turn != 1 and kind in ("TIFF", "BMP"):
            continue
        options = {} if kind == "BMP" or turn == 1 else {"exif": exif}
        image.write_bytes(encode(Image.new("RGB", size), kind, **options))
        if fits:
            assert check_masks([(image, mask)]) == ()
        else:
            with pytest.raises(InputError, match=r"mask\.png \(80 x 60 px\) does not fit its image \(120 x 160 px\)"):
                check_masks([(image, mask)])
