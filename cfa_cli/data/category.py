"""What a data set consists of: images to train on, images to test on, and masks of their defects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GOOD = "good"  # the kind of all defect-free test images, whatever the data set's own folder is called


@dataclass(frozen=True)
class TestImage:
    """One image to test on."""

    __test__ = False  # it is no test of pytest's

    path: Path
    kind: str  # "good", or the defect's name
    mask: Path | None = None  # where the defect is; None on good images, and where the data set has no masks
    folder: str = ""  # where it lies below the folder of its kind, POSIX

    @property
    def anomalous(self) -> bool:
        """Whether it shows a defect."""
        return self.kind != GOOD


@dataclass(frozen=True)
class Category:
    """One kind of object or texture, with its split."""

    name: str
    train: tuple[Path, ...]  # good images
    test: tuple[TestImage, ...]  # good ones first
    notes: tuple[str, ...] = ()  # what a reader of the results has to know about the split and the masks
    mask_folders: tuple[Path, ...] = ()  # where masks were looked for

    @property
    def has_masks(self) -> bool:
        """Whether there are defects and each has a mask, so that pixels can be judged."""
        bad = [image for image in self.test if image.anomalous]
        return bool(bad) and all(image.mask is not None for image in bad)
