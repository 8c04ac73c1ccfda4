"""What of an image is to be ignored: a mask or polygons for all images, or a folder of these by the images' names."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfa_cli.data.files import file_limit, read_file
from cfa_cli.errors import ImageError, InputError
from cfa_cli.records import FORMATS, IMAGE_SUFFIXES, MAX_PIXELS

NOTHING = "none"  # in place of a path: nothing is ignored
ASPECT_TOLERANCE = 0.02  # a mask may be of another size than its image, but not of another shape
_MAX_JSON = 16_000_000  # bytes
_MAX_SIDE = 1_000_000  # px
_SHIFT = 8  # bits of a corner's place below the pixel
_DRAW = 'White is ignored, black is kept. Polygons: {"polygons": [[[x, y], ...]], "size": [width, height]}.'
_OTHERS = f"Give a mask ({FORMATS}), polygons as JSON, or a folder of these by the images' names."


class _FormError(ValueError):
    """What is wrong with polygons, in words."""


@dataclass(frozen=True)
class IgnoreMasks:
    """The files that say what is ignored. Make one with `find_ignore_masks`."""

    path: Path  # one file for all images, or a folder
    files: dict[tuple[str, ...], Path] | None = None  # of a folder: path below it without suffix -> file

    @property
    def digest(self) -> str:
        """The SHA-256 of the files' names and contents. Raises InputError where one cannot be read."""
        files = {("",): self.path} if self.files is None else self.files
        digest = hashlib.sha256()
        for name, path in sorted(files.items()):
            content = read_file(path, file_limit(MAX_PIXELS))
            digest.update(f"{'/'.join(name)}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
            digest.update(content)
        return digest.hexdigest()

    def find(self, image: Path) -> Path | None:
        """Return the file for an image; of a folder the one that shares most of the end of its path, None without."""
        if self.files is None:
            return self.path
        parts = image.with_suffix("").parts
        ends = (parts[start:] for start in range(len(parts)))
        return next((self.files[end] for end in ends if end in self.files), None)


def find_ignore_masks(path: str | Path, images: Sequence[Path] = ()) -> IgnoreMasks:
    """Find the masks that `path` names: a file for all images, or a folder with files by the images' names.

    Raises InputError if there is no such file, and for a folder without masks or without any for `images`.
    """
    path = Path(path)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
        below = sorted(path.rglob("*")) if is_folder else []
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.", _OTHERS) from error
    if is_file:
        return IgnoreMasks(path)
    if not is_folder:
        what = "no file" if path.exists() else "nothing"
        raise InputError(f"There is {what} at {path}, which is to say what is ignored.", _OTHERS)
    masks = [each for each in below if each.suffix.lower() in (*IMAGE_SUFFIXES, ".json") and each.is_file()]
    files: dict[tuple[str, ...], Path] = {}
    for each in masks:
        other = files.setdefault(each.relative_to(path).with_suffix("").parts, each)
        if other != each:
            raise InputError(f"{other} and {each} both say what is ignored of one image.", "Remove one of them.")
    found = IgnoreMasks(path, files)
    if not files:
        raise InputError(f"There are no masks in {path}.", _OTHERS)
    if images and not any(map(found.find, images)):
        raise InputError(
            f"No mask in {path} has an image's name: images are called {images[0].name}, masks {masks[0].name}.",
            "Name each mask like its image; the suffix may differ.",
        )
    return found


def check_ignore(path: str | Path | None) -> None:
    """Raise InputError for what can be said at once of what is to take the place of what a model ignores."""
    if path is not None and str(path) != NOTHING:
        find_ignore_masks(path)


def read_ignored(path: Path) -> np.ndarray:
    """Read what a mask or polygons ignore: (h, w) uint8, 1 where it is ignored, 0 elsewhere; all or nothing may be.

    Raises InputError for what is neither, and for files that claim more than they may.
    """
    try:
        if path.suffix.lower() == ".json":
            return _draw(path)
        from cfa_cli.data.masks import cut_mask, read_values

        values, lossy, _ = read_values(path)
    except ImageError as error:
        raise InputError(error.message, _DRAW) from error
    if values.min() == values.max():
        return np.full(values.shape, values.max() > 0, np.uint8)
    return cut_mask(values, lossy)


def _draw(path: Path) -> np.ndarray:
    """Draw polygons: a pixel is in one if its centre is, or if its edge passes through it."""
    import cv2  # not needed to say what is wrong

    polygons, (width, height) = _parse(path)
    ignored = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        corners = np.rint((np.array(polygon) - 0.5) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(ignored, [corners], 1, shift=_SHIFT)  # one by one: together they would cancel each other out
    return ignored


def _parse(path: Path) -> tuple[list[list[tuple[float, float]]], tuple[int, int]]:
    """Return the polygons of a JSON file, this tool's own form or labelme's, and (width, height) in px."""
    try:
        document = json.loads(read_file(path, _MAX_JSON))
        if "shapes" in document:
            size = document["imageWidth"], document["imageHeight"]
            polygons = [_labelme(shape) for shape in document["shapes"]]
        else:
            size, polygons = document["size"], document["polygons"]
        width, height = (_side(side) for side in size)
        if width * height > MAX_PIXELS * 1e6:
            raise _FormError(f"its size is {width} x {height} px")
        return [_polygon(polygon, width, height) for polygon in polygons], (width, height)
    except KeyError as error:
        raise InputError(f"{path} holds no polygons: {error.args[0]} is missing.", _DRAW) from error
    except (AttributeError, OverflowError, RecursionError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, _FormError) else "it is not of that form"
        raise InputError(f"{path} holds no polygons that can be read: {reason}.", _DRAW) from error


def _side(side: Any) -> int:
    if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= _MAX_SIDE:
        raise _FormError("its size is not [width, height] in px")
    return side


def _labelme(shape: dict[str, Any]) -> list[Any]:
    kind, points = shape.get("shape_type", "polygon"), shape["points"]
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        return [[left, top], [right, top], [right, bottom], [left, bottom]]
    if kind != "polygon":
        raise _FormError("polygons and rectangles are read, no other shapes")
    return list(points)


def _polygon(points: Any, width: int, height: int) -> list[tuple[float, float]]:
    if not isinstance(points, list) or len(points) < 3:
        raise _FormError("a polygon has fewer than 3 corners")
    corners = [(float(x), float(y)) for x, y in points]
    for x, y in corners:
        if not (math.isfinite(x) and math.isfinite(y) and 0 <= x <= width and 0 <= y <= height):
            raise _FormError(f"a corner at {x:g}, {y:g} lies outside of its {width} x {height} px")
    return corners
