"""The benchmarks' data sets on disk: their layouts, their splits, and whether all of their files are there."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from cfa_cli.errors import InputError, UsageError
from cfa_cli.records import IMAGE_SUFFIXES
from cfa_cli.text import command_line

GOOD = "good"  # the kind of all defect-free test images, whatever the data set's own folder is called
MASK_SUFFIX = "_mask"  # that may follow the image's name in its mask's
_VISA_SPLIT = "split_csv/1cls.csv"
_MOST = 5  # problems that one message names


@dataclass(frozen=True)
class TestImage:
    """One image to test on."""

    __test__ = False  # it is no test of pytest's

    path: Path
    kind: str  # "good", or the defect's name
    mask: Path | None  # where the defect is; None on good images, and where the data set has no masks

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

    @property
    def has_masks(self) -> bool:
        """Whether every defect has a mask, so that pixels can be judged."""
        return all(image.mask is not None for image in self.test if image.anomalous)


@dataclass(frozen=True)
class Dataset:
    """A data set, or the part of it that was asked for."""

    name: str  # "MVTec AD", or the folder's name and a slash
    root: Path
    categories: tuple[Category, ...]


@dataclass(frozen=True)
class _Known:
    """What is public about a data set."""

    title: str
    where: str  # it is obtained
    licence: str
    archive: tuple[str, ...]  # folders that its archives unpack to
    counts: dict[str, tuple[int, int, int]]  # images of each category: train, test good, test anomalous
    read: Callable[[Path, Sequence[str]], Iterator[Category]]  # the categories of these names under a folder


def open_dataset(name: str, root: Path | None = None, categories: Sequence[str] = ()) -> Dataset:
    """Open `mvtec`, `visa`, `btad`, `mpdd` under `root` (the working folder if None), or a folder in MVTec's layout.

    Only the files' names are read. `categories` chooses some of them, in their order; () takes all.
    Raises UsageError for a name that is neither and for unknown categories; InputError where the data set is not
    there (saying where it is obtained) or not complete (saying what is missing).
    """
    if name not in KNOWN:
        return _open_folder(Path(name), root, categories)
    known = KNOWN[name]
    chosen = _choose(tuple(known.counts), categories, known.title)
    places = [root or Path(), *((root or Path()) / folder for folder in (*known.archive, name))]
    found = [place for place in places if any((place / category).is_dir() for category in known.counts)]
    if not found:
        raise InputError(
            f"{known.title} is not in {places[0].absolute()} or its folders {', '.join(p.name for p in places[1:])}.",
            f"Obtain it from {known.where} (licence: {known.licence}), and name its folder with --data-root.",
        )
    read = {category.name: category for category in known.read(found[0], chosen)}
    _require_complete(known, found[0], [read[each] for each in chosen])
    return Dataset(known.title, found[0], tuple(read[each] for each in chosen))


def _open_folder(folder: Path, root: Path | None, categories: Sequence[str]) -> Dataset:
    if root is not None:
        raise UsageError("--data-root goes with a data set's name.", f"Give the folder alone: cfa benchmark {folder}")
    if not folder.is_dir():
        near = difflib.get_close_matches(str(folder), KNOWN, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Give {', '.join(KNOWN)}, or a folder in MVTec's layout."
        raise UsageError(f"{folder} is neither a known data set nor a folder.", hint)
    resolved = folder.resolve()
    if (folder / "train").is_dir():
        names, parent = [resolved.name], resolved.parent
    else:
        parts = chain(folder.glob("*/train"), folder.glob("*/test"))  # a category without either is incomplete
        names, parent = sorted({part.parent.name for part in parts if part.is_dir()}), folder
    if not names:
        raise InputError(
            f"{folder} is not in MVTec's layout: neither it nor a folder in it has train/good.",
            "The layout: CATEGORY/train/good, CATEGORY/test/good, CATEGORY/test/KIND, CATEGORY/ground_truth/KIND. Of "
            "your own images, most of the normal ones belong in train/good, the others in test/good, and those with "
            "defects in test/KIND.",
        )
    chosen = _choose(tuple(names), categories, str(folder))
    read = list(_read_folders(parent, chosen))
    gaps: list[str] = []
    for category in read:
        gaps += _image_gaps(category, parent / category.name)
        if (parent / category.name / "ground_truth").is_dir():
            gaps += _mask_gaps(category)
    _require_none(gaps, f"{folder} is not complete", "Add what is missing, or choose complete categories: --category.")
    return Dataset(f"{resolved.name}/", folder, tuple(read))


def _choose(names: tuple[str, ...], wanted: Sequence[str], title: str) -> tuple[str, ...]:
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(names)}."
            raise UsageError(f"{title} has no category {name}.", hint)
    return tuple(name for name in names if name in wanted) if wanted else names


def _require_complete(known: _Known, root: Path, categories: Sequence[Category]) -> None:
    problems: list[str] = []
    there = [category for category in categories if (root / category.name).is_dir()]
    missing = [f"{each.name} ({sum(known.counts[each.name])} images)" for each in categories if each not in there]
    if missing:
        problems.append(f"no folder {', '.join(missing)}")
    for category in there:
        bad = sum(image.anomalous for image in category.test)
        found = len(category.train), len(category.test) - bad, bad
        kinds = "training images", "good test images", "anomalous test images"
        problems += [
            f"{category.name} has {have} {kind}, not {want}"
            for have, want, kind in zip(found, known.counts[category.name], kinds, strict=True)
            if have != want
        ]
        problems += _mask_gaps(category)
    hint = f"Obtain it again from {known.where}, or choose complete categories with --category."
    if known.read is _read_folders:
        hint += f" To measure on what is there: cfa benchmark {command_line([str(root.absolute())])}"
    _require_none(problems, f"{known.title} in {root.absolute()} is not complete", hint)


def _image_gaps(category: Category, folder: Path) -> list[str]:
    """Which images a category lacks that cannot be done without."""
    bad = sum(image.anomalous for image in category.test)
    return [
        f"{category.name} has {found} {kind} in {folder / where}, and needs {needed}"
        for found, needed, kind, where in [
            (len(category.train), 2, "training images", "train/good"),
            (len(category.test) - bad, 1, "good test images", "test/good"),
            (bad, 1, "anomalous test images", "test/KIND"),
        ]
        if found < needed
    ]


def _mask_gaps(category: Category) -> list[str]:
    """How many masks a category lacks, if any."""
    bad = [image for image in category.test if image.anomalous]
    lacking = [image.path for image in bad if image.mask is None]
    if not lacking:
        return []
    text = f"{category.name} has {len(bad) - len(lacking)} of {len(bad)} masks (none for {lacking[0]})"
    root = next((folder for folder in lacking[0].parents if folder.name == "test"), None)
    there = _images(root.parent / "ground_truth") if root else []
    if root and there and len(lacking) == len(bad):  # they may have other names
        stem = lacking[0].stem
        text += f"; looked for {stem}{MASK_SUFFIX} or {stem} with any image's suffix, there is {there[0].name}"
    return [text]


def _require_none(problems: Sequence[str], where: str, hint: str) -> None:
    """Raise InputError with the first of the problems, if there is one."""
    if problems:
        more = f"; and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
        raise InputError(f"{where}: {'; '.join(problems[:_MOST])}{more}.", hint)


def _images(folder: Path) -> list[Path]:
    """The images in a folder and below, sorted; none if it is not there."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _read_folders(root: Path, names: Sequence[str], good: str = GOOD) -> Iterator[Category]:
    """MVTec's layout, and BTAD's, which calls the good ones otherwise and may mix file formats."""
    for name in names:
        folder = root / name
        test = [TestImage(path, GOOD, None) for path in _images(folder / "test" / good)]
        for kind in sorted(
            each.name for each in (folder / "test").glob("[!.]*") if each.is_dir() and each.name != good
        ):
            # MVTec appends "_mask" to the image's name, others do not, and a mask may be of another format.
            place = folder / "ground_truth" / kind
            masks = {_key(path, place, MASK_SUFFIX): path for path in _images(place)}
            place = folder / "test" / kind
            test += [TestImage(path, kind, masks.get(_key(path, place))) for path in _images(place)]
        yield Category(name, tuple(_images(folder / "train" / good)), tuple(test))


def _key(path: Path, folder: Path, suffix: str = "") -> str:
    """What an image and its mask have in common: where they lie below their folders, and their name."""
    return path.relative_to(folder).with_name(path.stem.removesuffix(suffix)).as_posix()


def _read_btad(root: Path, names: Sequence[str]) -> Iterator[Category]:
    return _read_folders(root, names, good="ok")


def _read_visa(root: Path, names: Sequence[str]) -> Iterator[Category]:
    """VisA: the split is a table of paths. What it lists and is not there is left out, so that it is counted."""
    table = root / _VISA_SPLIT
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        listed = [(r["object"], r["split"], r["label"], root / r["image"], r["mask"] or "") for r in rows]
    except FileNotFoundError as error:
        raise InputError(
            f"VisA's split file is missing: {table}.",
            f"Obtain it from {KNOWN['visa'].where}. A copy in MVTec's layout: "
            f"{command_line(['cfa', 'benchmark', str(root)])}",
        ) from error
    except (OSError, KeyError, UnicodeDecodeError, TypeError) as error:
        raise InputError(
            f"VisA's split file {table} cannot be read.", "Its columns: object,split,label,image,mask."
        ) from error
    for name in names:
        mine = [row[1:] for row in listed if row[0] == name and row[3].is_file()]
        test = [
            TestImage(image, GOOD, None)
            if label == "normal"
            else TestImage(image, label, root / mask if mask and (root / mask).is_file() else None)
            for split, label, image, mask in mine
            if split == "test"
        ]
        test.sort(key=lambda image: (image.anomalous, image.path))
        yield Category(name, tuple(sorted(image for split, _, image, _ in mine if split == "train")), tuple(test))


# Counts: MVTec AD's are the tables of its paper, VisA's its split file 1cls.csv, MPDD's the files of its archive, and
# BTAD's the files of its archive too, whose readme gives 02 and 03 the other way round.
KNOWN = {
    "mvtec": _Known(
        "MVTec AD",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        "CC BY-NC-SA 4.0, not for commercial use",
        ("mvtec_anomaly_detection", "MVTecAD", "MVTec"),
        {
            "bottle": (209, 20, 63),
            "cable": (224, 58, 92),
            "capsule": (219, 23, 109),
            "carpet": (280, 28, 89),
            "grid": (264, 21, 57),
            "hazelnut": (391, 40, 70),
            "leather": (245, 32, 92),
            "metal_nut": (220, 22, 93),
            "pill": (267, 26, 141),
            "screw": (320, 41, 119),
            "tile": (230, 33, 84),
            "toothbrush": (60, 12, 30),
            "transistor": (213, 60, 40),
            "wood": (247, 19, 60),
            "zipper": (240, 32, 119),
        },
        _read_folders,
    ),
    "visa": _Known(
        "VisA",
        "https://github.com/amazon-science/spot-diff",
        "CC BY 4.0",
        ("VisA", "VisA_20220922"),
        {
            "candle": (900, 100, 100),
            "capsules": (542, 60, 100),
            "cashew": (450, 50, 100),
            "chewinggum": (453, 50, 100),
            "fryum": (450, 50, 100),
            "macaroni1": (900, 100, 100),
            "macaroni2": (900, 100, 100),
            "pcb1": (904, 100, 100),
            "pcb2": (901, 100, 100),
            "pcb3": (905, 101, 100),
            "pcb4": (904, 101, 100),
            "pipe_fryum": (450, 50, 100),
        },
        _read_visa,
    ),
    "btad": _Known(
        "BTAD",
        "https://avires.dimi.uniud.it/papers/btad/btad.zip",
        "CC BY-SA",
        ("BTech_Dataset_transformed", "BTAD"),
        {"01": (400, 21, 49), "02": (399, 30, 200), "03": (1000, 400, 41)},
        _read_btad,
    ),
    "mpdd": _Known(
        "MPDD",
        "https://github.com/stepanje/MPDD",
        "CC BY-NC-SA 4.0, not for commercial use",
        ("MPDD",),
        {
            "bracket_black": (289, 32, 47),
            "bracket_brown": (185, 26, 51),
            "bracket_white": (110, 30, 30),
            "connector": (128, 30, 14),
            "metal_plate": (54, 26, 71),
            "tubes": (122, 32, 69),
        },
        _read_folders,
    ),
}
