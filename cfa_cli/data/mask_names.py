"""Which mask belongs to which image, by their names and folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

SURE_MASK_FOLDERS = ("ground_truth", "groundtruth", "gt", "mask", "masks")
MASK_FOLDERS = (*SURE_MASK_FOLDERS, "label", "labels", "annotation", "annotations")  # which may be other things, too
_WORD = "mask|gt|label|annotation"
_AFFIX = re.compile(rf"(?P<before>.+)[_-](?:{_WORD})|(?:{_WORD})[_-](?P<behind>.+)")


def plain_name(name: str) -> str:
    """Return a folder's or file's name so that spellings agree: "Ground-Truth" is "ground_truth"."""
    return name.lower().replace("-", "_").replace(" ", "_")


def names_of_masks(stem: str) -> str:
    """Return, for a message, what the mask of the image `stem` may be called."""
    return f"{stem}_mask, {stem}_GT, {stem}_label, mask_{stem} or {stem}, with the suffix of any image"


def pair_masks(images: Iterable[Path], folders: Iterable[Path], masks: Iterable[Path]) -> dict[Path, Path]:
    """Find the masks of `images` among `masks`, which lie in or below `folders`: image -> mask.

    A mask has its image's name, with or without one of the usual words before or behind it, in any case; the folders
    between it and its mask folder are the last ones of the image's path, so that `masks/1.png`, `masks/scratch/1.png`
    and `ground_truth/scratch/camera1/1_mask.png` are all found. Of several the one that lies nearest is taken, then
    the one that shares the most folders, then one whose name says that it is a mask.
    """
    roots = list(folders)
    by_name: dict[str, list[tuple[Path, tuple[str, ...], bool, Path]]] = {}
    for mask in masks:
        root = next(root for root in roots if root in mask.parents)
        below = tuple(part.lower() for part in mask.relative_to(root).parent.parts)
        stem, bare = mask.stem.lower(), image_stem(mask)
        for name in {stem, bare or stem}:
            by_name.setdefault(name, []).append((root, below, name == bare, mask))
    found = {}
    for image in images:
        parents = tuple(part.lower() for part in image.parent.parts)
        fitting = [
            (_shared(image, root), len(below), says, mask)
            for root, below, says, mask in by_name.get(image.stem.lower(), [])
            if parents[len(parents) - len(below) :] == below
        ]
        if fitting:
            found[image] = max(fitting)[3]
    return found


def _shared(first: Path, second: Path) -> int:
    """How many folders two paths have in common."""
    different = (number for number, (a, b) in enumerate(zip(first.parts, second.parts, strict=False)) if a != b)
    return next(different, min(len(first.parts), len(second.parts)))


def image_stem(mask: Path) -> str | None:
    """Return the lower-case name of the image that a file is the mask of by its own name: "1" of 1_GT.png."""
    match = _AFFIX.fullmatch(mask.stem.lower())
    return (match["behind"] or match["before"]) if match else None


def split_masks(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """Tell images from masks that lie beside them: 1.png and 1_mask.png. Return the images, and image -> mask."""
    images = {(path.parent, path.stem.lower()): path for path in paths}
    masks = {}
    for path in paths:
        image = images.get((path.parent, image_stem(path) or ""))
        if image is not None:
            masks[image] = path
    beside = set(masks.values())
    return [path for path in paths if path not in beside], masks
