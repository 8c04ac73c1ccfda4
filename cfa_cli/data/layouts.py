"""Categories in folders: MVTec's layout, good beside bad with or without a split, and images with masks beside them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cfa_cli.data.category import GOOD, Category, TestImage
from cfa_cli.data.mask_names import MASK_FOLDERS, SURE_MASK_FOLDERS, image_stem, pair_masks, plain_name, split_masks
from cfa_cli.data.own_output import holds_results
from cfa_cli.records import IMAGE_SUFFIXES

GOOD_FOLDERS = ("good", "normal", "ok", "pass", "passed", "clean", "defect_free", "no_defect", "non_defective")
BAD_FOLDERS = (
    *("bad", "abnormal", "anomaly", "anomalies", "anomalous", "defect", "defects", "defective", "faulty"),
    *("ng", "nok", "ko", "not_ok", "fail", "failed"),
)
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "test_public")  # the last is MVTec AD 2's
OTHER_FOLDERS = ("validation", "val", "test_private", "test_private_mixed")  # of good images, or without labels
TRAIN_SHARE = 0.8  # of the good images, where there is no split
SPLIT_SEED = 42


@dataclass(frozen=True)
class Named:
    """Folders that the user names outright; what is None or empty is found by its name."""

    train: Path | None = None
    good: Path | None = None
    bad: tuple[Path, ...] = ()
    masks: Path | None = None

    @property
    def images(self) -> bool:
        """Whether a folder of images is named, so that none is looked for."""
        return bool(self.train or self.good or self.bad)


UNNAMED = Named()


def list_images(folder: Path) -> list[Path]:
    """Return the images in a folder and below, sorted; none if it is not there."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def read_folder(folder: Path, name: str, named: Named = UNNAMED, share: float = TRAIN_SHARE) -> Category | None:
    """Read a category's folder, whatever its layout; None if no layout is recognised.

    share: of the good images that trains where there is no split, 0..1.
    """
    if named.images:
        return _read_named(folder, name, named, share)
    children = _children(folder)
    masks = [named.masks] if named.masks else _mask_folders(children)
    train, test = _having(children, TRAIN_FOLDERS), _having(children, TEST_FOLDERS)
    if train or test:
        return _read_split(name, train, test, masks, children)
    good = _having(children, GOOD_FOLDERS)
    if good:
        others = [child for child in children if child not in good and child not in masks]
        return _read_unsplit(name, good, _images_of_kinds(_having(others, BAD_FOLDERS) or others), masks, share)
    notes: list[str] = []
    images = _read_pairs(folder, masks, notes)
    for child in children:
        if child not in masks:
            images += [replace(image, folder=child.name) for image in _read_pairs(child, masks, notes)]
    return _read_unsplit(name, [], images, masks, share, notes) if images else None


def _read_named(folder: Path, name: str, named: Named, share: float) -> Category:
    """Read the folders that the user names."""
    masks = [named.masks] if named.masks else _mask_folders(_children(folder))
    kinds = _images_of_kinds(named.bad)
    good = [named.good] if named.good else []
    if named.train is None:
        return _read_unsplit(name, good, kinds, masks, share)
    return _category(name, _photographs(named.train), [*_good_images(good), *kinds], masks, [])


def _read_split(
    name: str, train: Sequence[Path], test: Sequence[Path], masks: Sequence[Path], children: Sequence[Path]
) -> Category:
    """Read train/ and test/: with folders good and KIND (MVTec's layout), or with masks of what is bad (DAGM, KSDD2).

    Without test/, good and bad beside train/ are tested on.
    """
    notes = [
        f"The images in {child.name} were not used: neither to train nor to test on."
        for child in _having(children, OTHER_FOLDERS)
        if list_images(child)
    ]
    kinds: list[Path] = [] if test else _having(children, (*GOOD_FOLDERS, *BAD_FOLDERS))
    tests: list[TestImage] = []
    inside_test: list[Path] = []
    for part in test:
        inside = _children(part)
        found = masks or _mask_folders(inside)
        inside_test += [each for each in found if each not in masks]
        folders = [child for child in inside if child not in found and list_images(child)]
        kinds += folders
        tests += [] if folders else _read_pairs(part, found, notes)
    images: list[Path] = []
    for part in train:
        images += _read_training(part, kinds, () if kinds else masks, {image.mask for image in tests}, notes)
    return _category(name, images, [*tests, *_read_kinds(kinds)], masks or inside_test, notes)


def _read_training(
    folder: Path, kinds: Sequence[Path], masks: Sequence[Path], of_tests: Container[Path | None], notes: list[str]
) -> list[Path]:
    """The good images of a training folder.

    kinds: the folders of test images: one of the same name is of defects here too.
    masks: folders of masks for images that lie in the folder itself, where test images lie so too.
    of_tests: masks that belong to test images, which may have the same names.
    notes: what is left out is said here.
    """
    children, every = _children(folder), _photographs(folder)
    if good := _having(children, GOOD_FOLDERS):
        train = [image for each in good for image in _photographs(each)]
    elif pairs := _read_pairs(folder, masks, notes):
        every = [image.path for image in pairs]
        train = [image.path for image in pairs if not image.anomalous or image.mask in of_tests]
    else:
        names = [plain_name(kind.name) for kind in kinds if plain_name(kind.name) not in GOOD_FOLDERS]
        others = {image for each in _having(children, (*BAD_FOLDERS, *names)) for image in _photographs(each)}
        train = [image for image in every if image not in others]
    if left_out := len(every) - len(train):
        notes.append(f"Left out of training, because they show defects: {left_out} of {len(every)} images.")
    return train


def _read_unsplit(
    name: str,
    good: Sequence[Path],
    images: Sequence[TestImage],
    masks: Sequence[Path],
    share: float,
    notes: Sequence[str] = (),
) -> Category:
    """Read good folders, and images of kinds, without a split: a seeded share of the good images trains."""
    normal = [*_good_images(good), *(image for image in images if not image.anomalous)]
    train, tests = _split(normal, share)
    if share:
        note = f"{share:.0%} of the good images ({len(train)} of {len(normal)}, drawn with seed {SPLIT_SEED})"
        notes = [*notes, f"There is no training split: {note} train, the rest tests."]
    return _category(name, train, [*tests, *(image for image in images if image.anomalous)], masks, notes)


def _split(good: Sequence[TestImage], share: float) -> tuple[list[Path], list[TestImage]]:
    """Draw the good images that train; return them, and those that test.

    It is the draw of anomalib's KolektorSDD (scikit-learn's train_test_split), so that figures compare.
    """
    import numpy as np

    total = int(share * len(good))
    order = np.random.RandomState(SPLIT_SEED).permutation(len(good))
    tests = sorted(order[: len(good) - total].tolist())
    train = sorted(order[len(good) - total :].tolist())
    return [good[index].path for index in train], [good[index] for index in tests]


def _category(
    name: str, train: Sequence[Path], tests: Sequence[TestImage], masks: Sequence[Path], notes: Sequence[str]
) -> Category:
    """Give each defect its mask: from the mask folders, or from those beside it, or by a name beside its own."""
    bad = [image.path for image in tests if image.anomalous]
    places = sorted({path.parent for path in bad})
    folders = list(masks) or [each for place in places for each in _mask_folders(_children(place))]
    found = pair_masks(bad, folders, _images_in(folders))
    if not folders:
        found = split_masks([path for place in places for path in _flat_images(place)])[1]
    tests = [replace(each, mask=each.mask or found.get(each.path)) if each.anomalous else each for each in tests]
    tests.sort(key=lambda image: (image.anomalous, image.kind, image.path))
    notes = [*notes, *_notes_of_names(tests)]
    if not found and _several_masks(bad, folders):
        folders = []
        notes.append("An image has a folder of several masks, as in MVTec LOCO AD: images alone are judged, no pixels.")
    if tests and len(bad) in (0, len(tests)):
        lacking, figure = ("good", "false-positive rate") if bad else ("anomalous", "recall")
        notes.append(f"There are no {lacking} test images: image AUROC, F1 and {figure} are left blank.")
    return Category(name, tuple(train), tuple(tests), tuple(notes), tuple(folders))


def _notes_of_names(tests: Sequence[TestImage]) -> list[str]:
    """Say it where masks have another name than MVTec's."""
    for image in tests:
        if image.mask is not None and image_stem(image.mask) and image.mask.stem != f"{image.path.stem}_mask":
            return [f"Masks are named like {image.mask.name}, where MVTec's layout has {image.path.stem}_mask.png."]
    return []


def _several_masks(bad: Sequence[Path], folders: Sequence[Path]) -> bool:
    """Whether every defect has a folder of masks of its own name: ground_truth/KIND/NAME/000.png."""
    owners = {(mask.parent.parent.name, mask.parent.name) for mask in _images_in(folders)}
    return bool(bad) and all((image.parent.name, image.stem) in owners for image in bad)


def _read_pairs(folder: Path, masks: Sequence[Path], notes: list[str]) -> list[TestImage]:
    """Label the images in a folder by their masks. Without any mask nothing is known, and nothing returned.

    Where few images have one, these are bad. Where most have one, good images have empty masks (KolektorSDD), and what
    has none is neither good nor bad: it is left out, and `notes` say so.
    """
    folders = [*masks, *_mask_folders(_children(folder))]
    images, beside = split_masks(_flat_images(folder))
    pairs = {**pair_masks(images, folders, _images_in(folders)), **beside}
    if not pairs:
        return []
    bad = set(pairs)
    if 2 * len(pairs) > len(images):
        from cfa_cli.data.masks import marks_something

        bad = {image for image, mask in pairs.items() if marks_something(mask)}
        if without := [image.name for image in images if image not in pairs]:
            count = f"{len(without)} of {len(images)} images in {folder}"
            notes.append(f"Left out, because most images have a mask and these have none: {count} ({without[0]}).")
            images = [image for image in images if image in pairs]
    return [TestImage(image, "bad", pairs[image]) if image in bad else TestImage(image, GOOD) for image in images]


def _read_kinds(folders: Sequence[Path]) -> list[TestImage]:
    """Read folders of test images: good ones by their name, and the others, each a kind of defect."""
    good = _having(folders, GOOD_FOLDERS)
    tests = _good_images(good)
    for each in folders:
        if each not in good:
            tests += [TestImage(image, _kind(each), None, _below(image, each)) for image in _photographs(each)]
    return tests


def _good_images(folders: Sequence[Path]) -> list[TestImage]:
    return [TestImage(image, GOOD, None, _below(image, each)) for each in folders for image in _photographs(each)]


def _images_of_kinds(folders: Sequence[Path]) -> list[TestImage]:
    """The images of folders of defects: of the kind that a subfolder names, or else the folder itself."""
    found = []
    for folder in folders:
        for image in _photographs(folder):
            parts = image.relative_to(folder).parts
            where = folder / parts[0] if len(parts) > 1 else folder
            found.append(TestImage(image, _kind(where), None, _below(image, where)))
    return found


def _photographs(folder: Path) -> list[Path]:
    """The images in a folder and below, without the masks that lie beside them or in folders of masks."""
    images = [
        image
        for image in list_images(folder)
        if not any(plain_name(part) in SURE_MASK_FOLDERS for part in image.relative_to(folder).parts[:-1])
    ]
    return split_masks(images)[0]


def _kind(folder: Path) -> str:
    return folder.name if folder.name != GOOD else "bad"


def _below(image: Path, folder: Path) -> str:
    below = image.parent.relative_to(folder).as_posix()
    return "" if below == "." else below


def _having(folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Those of the folders that have one of the names, however it is spelt."""
    return [folder for folder in folders if plain_name(folder.name) in names]


def _children(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones and what cfa wrote."""
    try:
        found = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError:
        return []
    return [child for child in found if not holds_results(child)]


def _mask_folders(children: Sequence[Path]) -> list[Path]:
    """Those of the folders that hold masks by their name; labels and annotations are often of another form."""
    found = _having(children, MASK_FOLDERS)
    return [each for each in found if plain_name(each.name) in SURE_MASK_FOLDERS or list_images(each)]


def _flat_images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _images_in(folders: Iterable[Path]) -> list[Path]:
    return [image for folder in folders for image in list_images(folder)]
