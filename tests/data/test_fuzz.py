"""Mutated image files: each is read or is one ImageError; none takes a gigabyte, or seconds, or prints."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cfa_cli.data.images import read_image
from cfa_cli.errors import ImageError
from tests.data.files import encode, scene, tiff

ALL = 3229
SOME = 330  # of them in the ordinary suite
MEMORY = 1e9  # bytes that one file may add to the process
SECONDS = 2.0  # of processor time that one file may take


def _seeds() -> list[bytes]:
    """A file of each format, and of its kinds that are decoded in another way."""
    rgb = Image.fromarray(scene())
    rgba = Image.fromarray(np.dstack([scene(), scene()[..., 0]]))
    deep = scene().astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        encode(rgb, "PNG"),
        encode(rgba, "PNG", exif=exif),
        encode(rgb.quantize(16), "PNG", transparency=bytes(range(16))),
        cv2.imencode(".png", deep)[1].tobytes(),
        encode(rgb, "JPEG", exif=exif),
        encode(rgb, "JPEG", progressive=True),
        encode(rgb.convert("CMYK"), "JPEG"),
        encode(rgb, "BMP"),
        encode(rgb.quantize(16), "BMP"),
        cv2.imencode(".bmp", np.array(rgba))[1].tobytes(),
        encode(rgb, "TIFF"),
        encode(rgb, "TIFF", compression="tiff_lzw"),
        encode(rgb, "TIFF", compression="tiff_adobe_deflate"),
        encode(rgb, "TIFF", compression="jpeg"),
        encode(rgb, "TIFF", big_tiff=True),
        tiff(deep, photometric=2, orientation=5),
        tiff(np.dstack([deep, deep[..., :1]]), photometric=2, extra=2),
        encode(rgb, "WEBP"),
        encode(rgba, "WEBP", lossless=True, exif=exif),
        encode(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
        encode(rgb, "PPM"),
        b"P5 60 40 4095\n" + bytes(4800),
    ]


def _mutate(data: bytes, random_: random.Random) -> bytes:
    """Flip bits, cut off, write hostile numbers, repeat, drop or exchange a part."""
    changed = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        head = min(len(changed), random_.choice([32, 128, 512, len(changed)]))
        place = random_.randrange(max(1, head))
        kind = random_.randrange(6)
        if kind == 0:
            changed[place : place + 1] = bytes([changed[place] ^ 1 << random_.randrange(8)]) if changed else b""
        elif kind == 1:
            del changed[place:]
        elif kind == 2:
            hostile = random_.choice([0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 65000, 40000])
            size = random_.choice([1, 2, 4])
            number = (hostile & (256**size - 1)).to_bytes(size, random_.choice(["little", "big"]))
            changed[place : place + size] = number
        elif kind == 3:
            changed[place:place] = changed[place : place + random_.randrange(64)]
        elif kind == 4:
            del changed[place : place + random_.randrange(64)]
        else:
            changed[place : place + 8] = random_.randbytes(8)
    return bytes(changed)


def _fuzz(path: Path, numbers: Iterator[int] | range) -> dict[str, float]:
    """Read the mutants of these numbers; return how many were read, and what the hungriest and the slowest took."""
    seeds = _seeds()
    found = {"read": 0, "refused": 0, "memory": 0.0, "seconds": 0.0}
    for number in numbers:
        path.write_bytes(_mutate(seeds[number % len(seeds)], random.Random(number)))
        start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            image = read_image(path)
            assert image.ndim == 3
            assert image.dtype in (np.uint8, np.uint16)
            found["read"] += 1
        except ImageError:
            found["refused"] += 1
        found["seconds"] = max(found["seconds"], time.process_time() - start)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
        found["memory"] = max(found["memory"], grown)
    return found


@pytest.mark.parametrize(
    "numbers", [range(0, ALL, ALL // SOME), pytest.param(range(ALL), marks=pytest.mark.fuzz_all)], ids=["some", "all"]
)
def test_mutated_images(tmp_path: Path, numbers: range) -> None:
    found = _fuzz(tmp_path / "mutant", numbers)
    print(found)
    assert found["read"] > len(numbers) / 20
    assert found["refused"] > len(numbers) / 4
    assert found["memory"] < MEMORY
    assert found["seconds"] < SECONDS
