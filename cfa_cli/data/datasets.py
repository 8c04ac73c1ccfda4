"""The benchmarks' data sets on disk: where they lie, and whether all of their files are there."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cfa_cli.data.category import Category
from cfa_cli.data.known import KNOWN, Known, NoSplitFileError
from cfa_cli.data.layouts import TRAIN_SHARE, UNNAMED, Named, list_images, read_folder
from cfa_cli.data.mask_names import names_of_masks
from cfa_cli.errors import InputError, UsageError
from cfa_cli.text import command_line

_MOST = 5  # problems that one message names
_FOLDERS = 8  # and folders


@dataclass(frozen=True)
class Dataset:
    """A data set, or the part of it that was asked for."""

    name: str  # "MVTec AD", or the folder's name and a slash
    root: Path
    categories: tuple[Category, ...]


def open_dataset(
    name: str,
    root: Path | None = None,
    categories: Sequence[str] = (),
    named: Named = UNNAMED,
    trains: bool = True,
) -> Dataset:
    """Open a public data set under `root` (the working folder if None), or a folder of one's own images.

    name: a key of KNOWN, or a folder: of one category or of several, in any layout that `cfa_cli.data.layouts` knows.
    categories: some of them, in their order; () takes all.
    named: folders of one's own images that are named outright.
    trains: whether training images are needed; if not, all good images of a folder without a split are tested on.
    Raises UsageError for a name that is neither and for unknown categories; InputError where the data set is not
    there (saying where it is obtained) or not complete (saying what is missing).
    """
    if name not in KNOWN:
        return _open_folder(Path(name), root, categories, named, trains)
    if named != UNNAMED:
        raise UsageError(
            f"--train, --good, --bad and --masks go with a folder, not with {name}.",
            f"Give the folder in its place: cfa benchmark FOLDER, or leave them out: cfa benchmark {name}",
        )
    known = KNOWN[name]
    chosen = _choose(known.names, categories, known.title)
    place = find_dataset(name, root)
    if place is None:
        raise _not_there(name, root)
    try:
        found = [(category, known.read(place, category)) for category in chosen]
    except NoSplitFileError as error:
        copy = command_line(["cfa", "benchmark", str(place)])
        raise InputError(
            f"{known.title}'s split file is missing: {error}.",
            f"Obtain it from {known.where}. A copy in MVTec's layout: {copy}",
        ) from error
    _require_complete(known, place, found)
    return Dataset(known.title, place, tuple(category for _, category in found if category is not None))


def name_folders(folder: Path, train: str | None, good: str | None, bad: Sequence[str], masks: str | None) -> Named:
    """Find the folders that are named outright, in `folder` or by their own paths. Raises InputError."""

    def find(name: str, option: str) -> Path:
        for place in (folder / name, Path(name)):
            if place.is_dir():
                return place
        there = (
            ", ".join(sorted(each.name for each in folder.glob("[!.]*") if each.is_dir())[:_FOLDERS]) or "no folders"
        )
        raise InputError(f"{option}: there is no folder {name}, neither in {folder} nor here.", f"There: {there}.")

    return Named(
        train=find(train, "--train") if train else None,
        good=find(good, "--good") if good else None,
        bad=tuple(find(each, "--bad") for each in bad),
        masks=find(masks, "--masks") if masks else None,
    )


def find_dataset(name: str, root: Path | None) -> Path | None:
    """Return the folder in which a public data set lies: `root`, or one of those that its archive unpacks to."""
    known = KNOWN[name]
    return next((place for place in _places(name, root) if known.is_in(place)), None)


def _places(name: str, root: Path | None) -> list[Path]:
    names = (*KNOWN[name].archive, name)
    folders = [(root or Path()) / folder for folder in names]
    return [root or Path(), *folders, *(folder / inner for folder in folders for inner in names)]


def _not_there(name: str, root: Path | None) -> InputError:
    known, places = KNOWN[name], _places(name, root)
    looked = list(dict.fromkeys(place.name for place in places[1:]))
    terms = f"{known.where} (licence: {known.licence})"
    other = f"obtain it from {terms}"
    if known.download is not None:
        other = f"fetch it: cfa benchmark {name} --download. Its page: {terms}"
    return InputError(
        f"{known.title} is not in {places[0].absolute()} or its folders {', '.join(looked)}.",
        f"Name its folder with --data-root, or {other}.",
    )


def _open_folder(folder: Path, root: Path | None, categories: Sequence[str], named: Named, trains: bool) -> Dataset:
    if root is not None:
        raise UsageError("--data-root goes with a data set's name.", f"Give the folder alone: cfa benchmark {folder}")
    if not folder.is_dir():
        near = difflib.get_close_matches(str(folder), KNOWN, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Give {', '.join(KNOWN)}, or a folder of good and bad images."
        raise UsageError(f"{folder} is neither a known data set nor a folder.", hint)
    resolved = folder.resolve()
    share = TRAIN_SHARE if trains else 0.0
    whole = read_folder(folder, resolved.name, named, share)
    children = [] if whole else sorted(each for each in folder.glob("[!.]*") if each.is_dir())
    found = [whole] if whole else [each for child in children if (each := read_folder(child, child.name, named, share))]
    if not found:
        raise _no_layout(folder, children)
    chosen = _choose(tuple(category.name for category in found), categories, str(folder))
    read = [category for category in found if category.name in chosen]
    gaps = [gap for category in read for gap in (*_image_gaps(category, trains), *_mask_gaps(category))]
    _require_none(gaps, f"{folder} is not complete", "Add what is missing, or choose complete categories: --category.")
    return Dataset(f"{resolved.name}/", folder, tuple(read))


def _no_layout(folder: Path, children: Sequence[Path]) -> InputError:
    for name, known in KNOWN.items():
        if not known.folders and known.is_in(folder):
            command = command_line(["cfa", "benchmark", name, "--data-root", str(folder)])
            return InputError(
                f"{folder} holds {known.title}, whose layout is its own.", f"Read it by its name: {command}"
            )
    names = [child.name for child in children]
    more = f" and {len(names) - _FOLDERS} more" if len(names) > _FOLDERS else ""
    there = f"the folders {', '.join(names[:_FOLDERS])}{more}" if names else "no folders"
    return InputError(
        f"{folder} is in no layout that is read: neither it nor a folder in it has train and test, or good and bad "
        f"(normal and abnormal, ok and ng); it has {there}.",
        f"Name the folders: cfa benchmark {command_line([str(folder)])} --good FOLDER --bad FOLDER --masks FOLDER "
        "(without masks, leave that out). MVTec's layout: train/good, test/good, test/KIND, ground_truth/KIND.",
    )


def _choose(names: tuple[str, ...], wanted: Sequence[str], title: str) -> tuple[str, ...]:
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(names)}."
            raise UsageError(f"{title} has no category {name}.", hint)
    return tuple(name for name in names if name in wanted) if wanted else names


def _require_complete(known: Known, root: Path, categories: Sequence[tuple[str, Category | None]]) -> None:
    problems: list[str] = []
    missing = [
        f"{name} ({sum(known.counts[name])} images)" if name in known.counts else name
        for name, category in categories
        if category is None
    ]
    if missing:
        problems.append(f"no folder {', '.join(missing)}")
    for name, category in categories:
        if category is None:
            continue
        kinds = "training images", "good test images", "anomalous test images"
        problems += [
            f"{name} has {have} {kind}, not {want}"
            for have, want, kind in zip(_counts(category), known.counts.get(name, ()), kinds, strict=False)
            if have != want
        ]
        if name not in known.counts:
            problems += [
                f"{name} has no {kind}" for have, kind in zip(_counts(category), kinds, strict=True) if not have
            ]
        problems += _mask_gaps(category)
    hint = f"Obtain it again from {known.where}, or choose complete categories with --category."
    if known.folders:
        hint += f" To measure on what is there: cfa benchmark {command_line([str(root.absolute())])}"
    _require_none(problems, f"{known.title} in {root.absolute()} is not complete", hint)


def _counts(category: Category) -> tuple[int, int, int]:
    """How many images a category has to train on, and of good and anomalous ones to test on."""
    bad = sum(image.anomalous for image in category.test)
    return len(category.train), len(category.test) - bad, bad


def _image_gaps(category: Category, trains: bool) -> list[str]:
    """Which images a category lacks that cannot be done without."""
    train, good, bad = _counts(category)
    gaps = []
    if trains and train < 2:
        gaps.append(f"{category.name} has {train} training images (train/good, or good), and needs 2")
    if not good + bad:
        gaps.append(f"{category.name} has no test images (test/good and test/KIND, or good and bad)")
    return gaps


def _mask_gaps(category: Category) -> list[str]:
    """How many masks a category lacks, if any; one without any mask or mask folder needs none."""
    bad = [image for image in category.test if image.anomalous]
    masks = [image.mask for image in bad if image.mask is not None]
    if not category.mask_folders and not masks:
        return []
    lacking = [image.path for image in bad if image.mask is None]
    if lacking:
        text = f"{category.name} has {len(masks)} of {len(bad)} masks (none for {lacking[0]})"
        there = next((path.name for folder in category.mask_folders for path in list_images(folder)), None)
        if there and not masks:  # they may have other names
            text += f"; looked for {names_of_masks(lacking[0].stem)}; there is {there}"
        return [text]
    if len(set(masks)) < len(masks):
        twice = next(mask for mask in masks if masks.count(mask) > 1)
        return [f"{category.name} has several images of the name that the mask {twice} has"]
    return []


def _require_none(problems: Sequence[str], where: str, hint: str) -> None:
    """Raise InputError with the first of the problems, if there is one."""
    if problems:
        more = f"; and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
        raise InputError(f"{where}: {'; '.join(problems[:_MOST])}{more}.", hint)
