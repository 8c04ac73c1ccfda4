"""PNG's chunks: what libpng would print about a damaged or a careless file is found, or left out, beforehand."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
_DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
# What decides about the pixels. The rest is left out: colour profiles, texts, times, further frames of an animation.
_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")


def walk(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk of a PNG up to its end: name, and where its content starts and ends.

    Raises ValueError if the file is cut off.
    """
    position, name = len(SIGNATURE), b""
    while name != b"IEND":
        if position + 12 > len(data):
            raise ValueError("its end is missing")
        length, name = struct.unpack_from(">I4s", data, position)
        start = position + 8
        position += 12 + length
        if position > len(data):
            raise ValueError("its end is missing")
        yield name, start, position - 4


def clean(data: bytes) -> bytes:
    """Return the same picture as a PNG of its essential chunks alone, each known to be whole.

    Raises ValueError, with the reason, for a file that is cut off, whose checksums are wrong, or whose header or
    palette breaks the format's rules.
    """
    view = memoryview(data)
    chunks: dict[bytes, list[memoryview]] = {}
    for name, start, end in walk(data):
        if not chunks and (name != b"IHDR" or end - start != 13):
            raise ValueError("its header is damaged")
        if name not in _KEPT:
            if not name[0] & 0x20:  # a capital: it cannot be done without
                raise ValueError("it has a part of an unknown kind")
        elif name == b"IDAT" or name not in chunks:
            if zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
                raise ValueError(f"the checksum of its {name.decode()} is wrong")
            chunks.setdefault(name, []).append(view[start - 8 : end + 4])
    _check(chunks)
    return b"".join([SIGNATURE, *(chunk for name in _KEPT for chunk in chunks.get(name, ()))])


def _check(chunks: dict[bytes, list[memoryview]]) -> None:
    """Refuse what breaks the rules, and drop the parts that a colour type has no use for."""
    bits, colour, compression, filters, interlace = chunks[b"IHDR"][0][16:21]
    if bits not in _DEPTHS.get(colour, ()) or compression or filters or interlace > 1:
        raise ValueError("its header is damaged")
    if b"IDAT" not in chunks:
        raise ValueError("it has no pixels")
    colours, transparency = (len(chunks[name][0]) - 12 if name in chunks else 0 for name in (b"PLTE", b"tRNS"))
    if colour != PALETTE:
        chunks.pop(b"PLTE", None)
    elif not colours or colours % 3 or colours > 3 * 2**bits:
        raise ValueError("its palette is damaged")
    if transparency not in {GREY: (2,), RGB: (6,), PALETTE: range(1, colours // 3 + 1)}.get(colour, ()):
        chunks.pop(b"tRNS", None)  # as viewers do
