"""What a file claims is known before it is decoded, and a claim alone takes no memory."""

from __future__ import annotations

import os
import struct
import threading
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cfa_cli.data import images
from cfa_cli.data.headers import read_header
from cfa_cli.data.images import read_image
from cfa_cli.errors import ImageError
from tests.data.files import encode, png_chunk, scene, tiff


def pillow(kind: str, mode: str = "RGB", **options: object) -> bytes:
    return encode(Image.fromarray(scene()).convert(mode), kind, **options)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (pillow("PNG"), "PNG"),
        (pillow("PNG", "P"), "PNG"),
        (pillow("JPEG"), "JPEG"),
        (pillow("JPEG", progressive=True, comment=b"x" * 999), "JPEG"),
        (pillow("JPEG", "CMYK", exif=b"Exif\0\0" + bytes(999)), "JPEG"),
        (pillow("BMP"), "BMP"),
        (pillow("BMP", "1"), "BMP"),
        (pillow("TIFF"), "TIFF"),
        (pillow("TIFF", "L", big_tiff=True), "TIFF"),
        (pillow("TIFF", compression="tiff_lzw"), "TIFF"),
        (pillow("WEBP"), "WebP"),
        (pillow("WEBP", lossless=True), "WebP"),
        (pillow("WEBP", "RGBA", exif=Image.Exif()), "WebP"),
        (pillow("PPM"), "PNM"),
        (pillow("PPM", "L"), "PNM"),
    ],
)
def test_sizes_of_every_format(data: bytes, kind: str) -> None:
    header = read_header(data)
    assert header is not None
    assert (header.format, header.width, header.height) == (kind, 60, 40)
    for end in range(0, min(len(data), 60)):  # cut off anywhere: a reason, or too little to know the format by
        try:
            cut = read_header(data[:end])
        except ValueError:
            continue
        assert cut is None or (cut.width, cut.height) == (60, 40)


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small file whose header says that it is large."""
    if kind == "PNG":
        header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", bytes(99)) + png_chunk(b"IEND", b"")
    if kind == "JPEG":
        data = bytearray(pillow("JPEG"))
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
        return bytes(data)
    if kind == "BMP":
        data = bytearray(pillow("BMP"))
        struct.pack_into("<ii", data, 18, width, -height)
        return bytes(data)
    if kind == "TIFF":
        data = tiff(scene(), photometric=2)
        for tag, value in ((256, width), (257, height)):
            old = struct.pack("<HHII", tag, 4, 1, 60 if tag == 256 else 40)
            assert old in data
            data = data.replace(old, struct.pack("<HHII", tag, 4, 1, value))
        return data
    if kind == "WebP":
        data = bytearray(pillow("WEBP", "RGBA", exif=Image.Exif(), lossless=False))
        assert data[12:16] == b"VP8X"
        data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        return bytes(data)
    return b"P6\n%d %d\n255\n" % (width, height) + bytes(99)


KINDS = ["PNG", "JPEG", "BMP", "TIFF", "WebP", "PNM"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_of_900_megapixels_is_not_decoded(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(claiming(kind, 30_000, 30_000))
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
        tracemalloc.start()
        with pytest.raises(ImageError, match=r"is 30000 x 30000 px by its header, 900 megapixels; the limit is 200"):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 1e6
        tracemalloc.stop()
    with pytest.raises(ImageError, match=r"the limit is 0\.001"):
        read_image(path, max_pixels=0.001)


def test_the_limit_is_the_callers(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(encode(Image.new("L", (1000, 1000)), "PNG"))
    assert read_image(path, max_pixels=1).shape == (1000, 1000, 3)
    with pytest.raises(ImageError, match=r"1 megapixels; the limit is 0\.9\.") as error:
        read_image(path, max_pixels=0.9)
    assert error.value.hint is not None
    assert "--max-pixels" in error.value.hint


def test_a_huge_tile_and_a_huge_file(tmp_path: Path) -> None:
    path = tmp_path / "tile.tif"
    data = pillow("TIFF")
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    entries = [data[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    entries += [struct.pack("<HHII", tag, 4, 1, 60_000) for tag in (322, 323)]
    ordered = b"".join(sorted(entries, key=lambda entry: entry[:2][::-1]))
    directory = struct.pack("<H", len(entries)) + ordered + bytes(4)
    path.write_bytes(data[:4] + struct.pack("<I", len(data)) + data[8:] + directory)
    with pytest.raises(ImageError, match="3,600 megapixels"):
        read_image(path)
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(10**11)
    with pytest.raises(ImageError, match=r"sparse\.png is 100\.0 GB"):
        read_image(tmp_path / "sparse.png")


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(pillow("PNG"))
    decode, running, most = images._decode, [], []

    def slow(*arguments: object) -> np.ndarray:
        running.append(1)
        most.append(len(running))
        threading.Event().wait(0.02)
        running.pop()
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "_decode", slow)
    for large, one_at_a_time in ((images.LARGE, False), (1000, True)):
        monkeypatch.setattr(images, "LARGE", large)
        most.clear()
        threads = [threading.Thread(target=read_image, args=(path,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (max(most) == 1) is one_at_a_time


@pytest.mark.parametrize("full_scale", [100, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_pgm_and_ppm_know_their_full_scale(tmp_path: Path, full_scale: int, channels: int) -> None:
    values = np.rint(scene()[..., :channels] / 255 * full_scale).astype(int)
    stored = values.astype(np.uint8 if full_scale < 256 else ">u2").tobytes()
    path = tmp_path / "image.pgm"
    path.write_bytes(b"P%d\n# a comment\n60 40\n%d\n" % (5 if channels == 1 else 6, full_scale) + stored)
    image = read_image(path)
    limit = np.iinfo(image.dtype).max
    assert limit == (255 if full_scale < 256 else 65535)
    kept = full_scale in (1023, 4095)  # as cameras store them: the depth is the training set's, see test_depth.py
    expected = values if kept else np.rint(values * (limit / full_scale))
    np.testing.assert_array_equal(image, np.broadcast_to(expected, image.shape))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ImageError, match="is cut off"):
        read_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    import socket

    path = tmp_path / "x.png"
    server = socket.socket(socket.AF_UNIX)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    with server, pytest.raises(ImageError, match="is no regular file, not an image"):
        read_image(path)
