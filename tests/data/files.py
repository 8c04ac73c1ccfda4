"""Image files made for tests: a scene, and writers of what Pillow and OpenCV do not write."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 60


def scene() -> np.ndarray:
    """(40, 60, 3) RGB, smooth, without symmetry: a swapped channel or axis shows."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 4, y * 3, 200 - x - y], axis=-1).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(
    samples: np.ndarray,
    photometric: int,
    extra: int | None = None,
    orientation: int = 1,
) -> bytes:
    """An uncompressed little-endian TIFF of (h, w) or (h, w, n) uint8 or uint16."""
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    data, bits = samples.astype(samples.dtype.newbyteorder("<")).tobytes(), samples.dtype.itemsize * 8
    short, long = 3, 4
    tags = {256: (long, width), 257: (long, height), 259: (short, 1), 262: (short, photometric), 273: (long, 0)}
    tags |= {274: (short, orientation), 277: (short, channels), 278: (long, height), 279: (long, len(data))}
    tags |= {258: (short, bits)} | ({338: (short, extra)} if extra is not None else {})
    end = 8 + 2 + 12 * len(tags) + 4
    tags[273] = long, end + 8  # the pixels, after the bits of four channels
    entries = b"".join(
        struct.pack("<HHII", 258, short, channels, end)
        if tag == 258 and channels > 2
        else struct.pack("<HHIHH", tag, kind, channels, value, value)
        if tag == 258
        else struct.pack("<HHII", tag, kind, 1, value)
        for tag, (kind, value) in sorted(tags.items())
    )
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return header + struct.pack("<4H", bits, bits, bits, bits) + data
