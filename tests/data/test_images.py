"""`read_image` against Pillow, and its one sentence for every kind of bad file."""

from __future__ import annotations

import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from cfa_cli.data.images import read_image
from cfa_cli.errors import ImageError
from tests.data.files import HEIGHT, WIDTH, encode, png_chunk, scene


def oriented(kind: str, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.fromarray(scene()), kind, exif=exif, **options)


def read(tmp_path: Path, data: bytes, name: str = "image.png") -> np.ndarray:
    path = tmp_path / name
    path.write_bytes(data)
    return read_image(path)


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"big_tiff": True}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 100, "subsampling": 0}, 4),
        ("JPEG", {"quality": 100, "subsampling": 0, "progressive": True}, 4),
    ],
)
def test_formats_give_rgb_at_the_source_size(tmp_path: Path, kind: str, options: dict, tolerance: int) -> None:
    image = read(tmp_path, encode(Image.fromarray(scene()), kind, **options))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - scene()).max() <= tolerance


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("L", kind) for kind in ("PNG", "JPEG", "TIFF", "BMP")),
        *(("1", kind) for kind in ("PNG", "TIFF", "BMP")),
        *(("P", kind) for kind in ("PNG", "TIFF", "BMP")),
        ("LA", "PNG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
    ],
)
def test_modes_become_what_pillow_makes_of_them(tmp_path: Path, mode: str, kind: str) -> None:
    source = Image.fromarray(scene())
    data = encode(source.quantize(16) if mode == "P" else source.convert(mode), kind)
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    image = read(tmp_path, data)
    assert image.dtype == np.uint8
    assert np.abs(image - expected).max() <= (2 if mode == "CMYK" else 0)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_is_neither_clipped_nor_rescaled(tmp_path: Path, suffix: str, channels: int) -> None:
    values = np.linspace(0, 65535, HEIGHT * WIDTH * channels).astype(np.uint16).reshape(HEIGHT, WIDTH, channels)
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), values)
    image = read_image(tmp_path / f"deep{suffix}")
    assert image.dtype == np.uint16
    expected = np.repeat(values, 3, axis=2) if channels == 1 else values[..., 2::-1]  # imwrite takes BGR
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, kind: str, orientation: int) -> None:
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = oriented(kind, orientation, **options)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    image = read(tmp_path, data)
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= 1


def test_exif_orientation_of_16_bit(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise puts it upright
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 27
    image = read(tmp_path, encode(Image.fromarray(values), "PNG", exif=exif))
    np.testing.assert_array_equal(image[..., 0], np.rot90(values, -1))


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(255 - scene()), Image.fromarray(scene() // 2)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(scene()), kind, save_all=True, append_images=frames, **options)
    np.testing.assert_array_equal(read(tmp_path, data), scene())


@pytest.mark.parametrize("name", ["Außen teil №1 (копия).png", "部品.PNG", "no-suffix", "really-a-png.jpg"])
def test_any_path_and_the_content_decides(tmp_path: Path, name: str) -> None:
    np.testing.assert_array_equal(read(tmp_path, encode(Image.fromarray(scene()), "PNG"), name), scene())


def test_20000_px_wide_and_the_smallest(tmp_path: Path) -> None:
    wide = np.zeros((32, 20_000, 3), np.uint8)
    wide[:, -1] = (1, 2, 3)
    np.testing.assert_array_equal(read(tmp_path, encode(Image.fromarray(wide), "PNG")), wide)
    assert read(tmp_path, encode(Image.fromarray(scene()[:32, :32]), "PNG")).shape == (32, 32, 3)


def test_threads_read_the_same(tmp_path: Path) -> None:
    paths = []
    for number in range(24):
        path = tmp_path / f"{number}.png"
        path.write_bytes(encode(Image.fromarray(np.roll(scene(), number, axis=1)), "PNG"))
        paths.append(path)
    with ThreadPoolExecutor(8) as pool:
        for number, image in enumerate(pool.map(read_image, paths)):
            np.testing.assert_array_equal(image, np.roll(scene(), number, axis=1))


def test_bytes_after_the_end_do_no_harm(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
        data = encode(Image.fromarray(scene()), kind)
        np.testing.assert_array_equal(read(tmp_path, data + bytes(100)), read(tmp_path, data))


def test_a_wrong_colour_profile_is_no_reason_to_print(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = encode(Image.fromarray(scene()), "PNG")
    after_header = 8 + 25
    profile = png_chunk(b"iCCP", b"photo shop\0\0" + zlib.compress(b"no profile"))
    np.testing.assert_array_equal(read(tmp_path, data[:after_header] + profile + data[after_header:]), scene())
    assert capfd.readouterr() == ("", "")


NOISE = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_truncated_file_is_never_read_in_part(
    tmp_path: Path, kind: str, options: dict, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encode(Image.fromarray(NOISE), kind, **options)
    cut = int(len(data) * share) - 20
    with pytest.raises(ImageError, match=r"image\.png is (damaged, )?cut off") as error:
        read(tmp_path, data[:cut])
    assert error.value.hint is not None
    assert capfd.readouterr() == ("", ""), "the libraries below print nothing"


def test_a_truncated_16_bit_tiff(tmp_path: Path) -> None:
    data = encode(Image.fromarray(np.arange(100 * 100, dtype=np.uint16).reshape(100, 100)), "TIFF")
    with pytest.raises(ImageError, match="cut off"):
        read(tmp_path, data[:-5000])


def test_a_flipped_byte_in_a_png(tmp_path: Path) -> None:
    data = bytearray(encode(Image.fromarray(NOISE), "PNG"))
    data[len(data) // 2] ^= 0x55
    with pytest.raises(ImageError, match="is damaged"):
        read(tmp_path, bytes(data))


def huge_png() -> bytes:
    """40,000 x 30,000 px by its header."""
    header = struct.pack(">IIBBBBB", 40_000, 30_000, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def safetensors() -> bytes:
    header = b'{"bank":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return struct.pack("<Q", len(header)) + header + bytes(4)


FLOATS = Image.fromarray(np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("zero.png", b"", r"zero\.png is empty \(0 bytes\)\."),
        ("one.png", encode(Image.new("RGB", (1, 1)), "PNG"), r"one\.png is 1 x 1 px; at least 32 px"),
        ("flat.png", encode(Image.new("RGB", (60, 31)), "PNG"), r"flat\.png is 60 x 31 px; at least 32 px"),
        ("text.jpg", b"hello, world\n" * 50, r"text\.jpg is not an image that cfa reads \(PNG, JPEG, BMP, TIFF, WebP"),
        ("few.png", b"\x89P", r"few\.png is not an image"),
        ("moving.gif", encode(Image.fromarray(scene()), "GIF"), r"moving\.gif is not an image that cfa reads"),
        ("float.tif", encode(FLOATS, "TIFF"), r"float\.tif holds float32 values; 8-bit and 16-bit images are read\."),
        ("int.tif", encode(Image.new("I", (60, 40)), "TIFF"), r"int\.tif holds int32 values"),
        ("huge.png", huge_png(), r"huge\.png is 40000 x 30000 px by its header, 1,200 megapixels; the limit is 200\."),
        ("model.safetensors", safetensors(), r"model\.safetensors is a model, not an image\."),
        ("renamed.png", safetensors(), r"renamed\.png is a model, not an image\."),
        ("riff.webp", b"RIFF\x10\0\0\0WEBPVP8 " + bytes(100), r"riff\.webp is damaged"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, data: bytes, sentence: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ImageError, match=sentence) as error:
        read(tmp_path, data, name)
    assert "\n" not in error.value.message
    if "is a model" in sentence:
        assert error.value.hint == f"Give it with --model {tmp_path / name}"
    assert capfd.readouterr() == ("", "")


def test_float_rgb_tiff(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "float.tiff"), np.zeros((40, 40, 3), np.float32))
    with pytest.raises(ImageError, match="holds float32 values"):
        read_image(tmp_path / "float.tiff")


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"There is no file .*gone\.png\."):
        read_image(tmp_path / "gone.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=r"There is no file .*link\.png\."):
        read_image(tmp_path / "link.png")
    with pytest.raises(ImageError, match="is a folder, not an image"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is no regular file, not an image"):
        read_image(tmp_path / "pipe.png")


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(encode(Image.fromarray(scene()), "PNG"))
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match=r"Cannot read .*locked\.png: Permission denied\.") as error:
        read_image(path)
    assert error.value.hint == "Check the file's permissions."
