"""What an image file says about itself, read before it is decoded: a few bytes may claim gigabytes of pixels."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cfa_cli.data import png

Format = Literal["PNG", "JPEG", "BMP", "TIFF", "WebP", "PNM"]
Alpha = Literal["none", "straight", "premultiplied"]

_TIFF = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
_TIFF_TYPES = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4), 16: ("Q", 8)}  # of whole numbers: struct's code, bytes
_MOST_VALUES = 16  # of one TIFF tag that are looked at
_PNM = re.compile(rb"P([56])(?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,5})\s")


@dataclass(frozen=True, slots=True)
class Header:
    """An image file's own description."""

    format: Format
    width: int  # px, as stored: before the EXIF orientation
    height: int
    bits: int = 8  # of a channel
    channels: int = 3  # alpha included; 1 of a palette
    alpha: Alpha = "none"  # as the decoder gives it
    orientation: int = 1  # EXIF's, 1 to 8
    transparent: int | None = None  # PNG: the grey value that is transparent
    white_is_zero: bool = False  # TIFF: a negative
    offset: int = 0  # PNM: where the pixels start, bytes
    full_scale: int = 0  # PNM: the value that is white
    tile: int = 0  # TIFF: px of a tile, which is decoded whole


def read_header(data: bytes) -> Header | None:
    """Describe the image in `data`, a whole file; None if it is of no format that is read.

    The content decides, not the file's name. Nothing is decoded, and no memory taken but for this record.
    Raises ValueError, with the reason, where the description is damaged or cut off.
    """
    try:
        if data.startswith(png.SIGNATURE):
            return _png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(b"BM"):
            return _bmp(data)
        if data[:4] in _TIFF:
            return _tiff(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if match := _PNM.match(data[:1024]):
            return _pnm(match)
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError("its header is cut off") from error
    return None


def _png(data: bytes) -> Header:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if colour not in png.CHANNELS:
        raise ValueError("its header is damaged")
    parts = {name: data[start:end] for name, start, end in png.walk(data) if name in (b"tRNS", b"eXIf")}
    transparency = parts.get(b"tRNS", b"")
    transparent = int.from_bytes(transparency, "big") if transparency and colour == png.GREY else None
    if transparent is not None and bits < 8:  # the decoder spreads such values over 0..255
        transparent *= 255 // (2**bits - 1)
    return Header(
        "PNG",
        width,
        height,
        bits=max(8, bits),
        channels=png.CHANNELS[colour],
        alpha="straight" if transparency or colour in (png.GREY_ALPHA, png.RGB_ALPHA) else "none",
        orientation=_orientation(parts.get(b"eXIf", b"")),
        transparent=transparent,
    )


def _jpeg(data: bytes) -> Header:
    position, exif = 2, b""
    while True:
        position = data.find(b"\xff", position)
        if position < 0:
            raise ValueError("its header is cut off")
        while data[position] == 0xFF:  # markers may be padded
            position += 1
        marker, position = data[position], position + 1
        if marker in (0x00, 0x01, 0xD8) or 0xD0 <= marker <= 0xD7:  # these stand alone
            continue
        if marker in (0xD9, 0xDA):
            raise ValueError("it has pixels before it says how many")
        (length,) = struct.unpack_from(">H", data, position)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 2)
            return Header("JPEG", width, height, bits=bits, channels=channels, orientation=_orientation(exif))
        if marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", position + 2):
            exif = data[position + 8 : position + length]
        position += length


def _bmp(data: bytes) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        return Header("BMP", width, height, channels=max(1, bits // 8))
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    # Only a header of 56 bytes or more says which bits are alpha; of others a pixel's fourth byte means nothing.
    alpha = size >= 56 and bits == 32 and compression == 3 and struct.unpack_from("<I", data, 66)[0] != 0
    return Header("BMP", width, abs(height), channels=max(1, bits // 8), alpha="straight" if alpha else "none")


def _webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("WebP", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        alpha: Alpha = "straight" if packed >> 28 & 1 else "none"
        return Header("WebP", (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, alpha=alpha)
    if kind == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[start : start + 3], "little") + 1 for start in (24, 27))
        exif = next((content for name, content in _riff_chunks(data) if name == b"EXIF"), b"")
        alpha = "straight" if data[20] & 0x10 else "none"
        return Header("WebP", width, height, alpha=alpha, orientation=_orientation(exif.removeprefix(b"Exif\0\0")))
    raise ValueError("its header is damaged")


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        yield data[position : position + 4], data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _pnm(match: re.Match[bytes]) -> Header:
    kind, width, height, full_scale = (int(text) for text in match.groups())
    if not 0 < full_scale < 2**16:
        raise ValueError(f"its values go up to {full_scale}")
    bits = 8 if full_scale < 256 else 16
    channels = 1 if kind == 5 else 3
    return Header("PNM", width, height, bits=bits, channels=channels, offset=match.end(), full_scale=full_scale)


def _tiff(data: bytes) -> Header:
    tags = _tiff_tags(data)
    if not tags.get(256) or not tags.get(257):
        raise ValueError("it does not say how large it is")
    bits, channels = tags.get(258, (1,)), tags.get(277, (1,))[0]
    photometric = tags.get(262, (1,))[0]
    extra = tags.get(338)
    alpha: Alpha = "none"
    if photometric == 2 and channels == 4 and not extra:
        alpha = "straight"  # as writers that leave the tag out mean it, OpenCV's among them
    elif extra and extra[0] in (1, 2):
        # libtiff multiplies straight alpha of 8 bits itself.
        alpha = "premultiplied" if extra[0] == 1 or max(bits) <= 8 else "straight"
    return Header(
        "TIFF",
        tags[256][0],
        tags[257][0],
        bits=max(bits),
        channels=channels,
        alpha=alpha,
        orientation=_orientation(data),
        white_is_zero=photometric == 0,
        tile=tags.get(322, (0,))[0] * tags.get(323, (0,))[0],
    )


def _orientation(tiff: bytes) -> int:
    """Return the orientation that EXIF data, which are a TIFF's, ask for: 1 to 8; 1 where they are damaged."""
    try:
        value = _tiff_tags(tiff).get(274, (1,))[0]
    except (ValueError, struct.error, IndexError, OverflowError):
        return 1
    return value if 1 <= value <= 8 else 1


def _tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """Return the whole-number tags of the first page of a TIFF: at most 16 values of each."""
    if data[:4] not in _TIFF:
        raise ValueError("it is no TIFF")
    order, big = _TIFF[data[:4]]
    count_code, offset_code, entry_size, inline = ("Q", "Q", 20, 8) if big else ("H", "I", 12, 4)
    (start,) = struct.unpack_from(order + offset_code, data, 8 if big else 4)
    (entries,) = struct.unpack_from(order + count_code, data, start)
    start += struct.calcsize(order + count_code)
    if entries * entry_size > len(data) - start:
        raise ValueError("its header is cut off")
    tags: dict[int, tuple[int, ...]] = {}
    for number in range(entries):
        position = start + number * entry_size
        tag, kind, count = struct.unpack_from(order + "HH" + offset_code, data, position)
        if kind not in _TIFF_TYPES or not count or tag in tags:
            continue
        code, size = _TIFF_TYPES[kind]
        position += 4 + inline
        if count * size > inline:
            (position,) = struct.unpack_from(order + offset_code, data, position)
        if position + min(count, _MOST_VALUES) * size > len(data):
            continue  # lists that are cut off are the decoder's to judge
        tags[tag] = struct.unpack_from(f"{order}{min(count, _MOST_VALUES)}{code}", data, position)
    return tags
