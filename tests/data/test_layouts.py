"""Folders of one's own and public layouts: each tree is written as it is unpacked, and read without a word of help."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from cfa_cli.data.category import Category
from cfa_cli.data.datasets import name_folders, open_dataset
from cfa_cli.errors import InputError, UsageError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_mask(path: Path, marks: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 2:4] = 255 * marks
    path.write_bytes(cv2.imencode(path.suffix, mask)[1].tobytes())


def numbered(pattern: str, count: int, start: int = 0) -> list[str]:
    return [pattern.format(number) for number in range(start, start + count)]


def only(root: Path, *arguments: object) -> Category:
    (category,) = open_dataset(str(root), *arguments).categories
    return category


def masks_of(category: Category, root: Path) -> dict[str, str | None]:
    """Image -> mask of the defects, relative to the root."""
    return {
        image.path.relative_to(root).as_posix(): image.mask and image.mask.relative_to(root).as_posix()
        for image in category.test
        if image.anomalous
    }


@pytest.mark.parametrize(
    ("good", "bad", "masks"),
    [
        ("good", "bad", "masks"),
        ("normal", "abnormal", "mask"),
        ("OK", "NG", "GT"),
        ("Good", "Defect", "Label"),
        ("defect-free", "defective", "Ground Truth"),
        ("pass", "fail", "annotations"),
        ("good", "scratch", "ground_truth"),  # any other folder is a kind
    ],
)
def test_good_beside_bad_without_a_split(tmp_path, good, bad, masks):
    touch(tmp_path, *numbered(good + "/{}.png", 10), *numbered(bad + "/{}.png", 3), *numbered(masks + "/{}.png", 3))
    category = only(tmp_path)
    assert (len(category.train), Counter(image.kind for image in category.test)) == (8, {"good": 2, bad: 3})
    assert masks_of(category, tmp_path) == {f"{bad}/{n}.png": f"{masks}/{n}.png" for n in range(3)}
    assert "80% of the good images (8 of 10, drawn with seed 42) train" in category.notes[0]
    assert not set(category.train) & {image.path for image in category.test}
    assert only(tmp_path) == category


@pytest.mark.parametrize(
    "name",
    [
        "{}_mask",
        "{}_MASK",
        "{}-mask",
        "{}_GT",
        "{}_gt",
        "{}_label",
        "mask_{}",
        "gt_{}",
        "label-{}",
        "{}_annotation",
        "{}",
    ],
)
@pytest.mark.parametrize(
    "place", ["ground_truth/spot", "masks", "labels/spot", "test/spot/masks", "annotation/test/spot"]
)
def test_masks_by_the_usual_names_and_folders(tmp_path, name, place):
    images = numbered("test/spot/00{}.jpg", 3)
    masks = numbered(f"{place}/{name.replace('{}', '00{}')}.png", 3)
    touch(tmp_path, *numbered("train/good/{}.jpg", 3), "test/good/1.jpg", *images, *masks)
    category = only(tmp_path)
    assert masks_of(category, tmp_path) == dict(zip(images, masks, strict=True))
    affix = name.lower() not in ("{}", "{}_mask")
    assert any("Masks are named like" in note for note in category.notes) is (affix or name == "{}_MASK")


def test_masks_that_lie_beside_their_images(tmp_path):
    touch(tmp_path, *numbered("good/{}.png", 5), *numbered("bad/{}.png", 2), *numbered("bad/{}_mask.png", 2))
    assert masks_of(only(tmp_path), tmp_path) == {f"bad/{n}.png": f"bad/{n}_mask.png" for n in range(2)}


def test_images_in_one_folder_and_masks_in_another(tmp_path):
    """What has a mask that marks something is bad, whatever the folders are called."""
    touch(tmp_path, *numbered("images/{}.jpg", 12))
    for number in (3, 4):
        write_mask(tmp_path / f"masks/{number}.png", True)
    category = only(tmp_path)
    assert masks_of(category, tmp_path) == {f"images/{n}.jpg": f"masks/{n}.png" for n in (3, 4)}
    assert (len(category.train), len(category.test)) == (8, 4)
    write_mask(tmp_path / "masks/5.png", False)  # where most images have none, an empty one is a fault
    assert len(masks_of(only(tmp_path), tmp_path)) == 3


def test_masks_are_no_images_of_good_parts(tmp_path):
    touch(tmp_path, *numbered("good/{}.png", 5), *numbered("good/{}_mask.png", 5), "good/gt/1.png", "bad/1.png")
    category = only(tmp_path)
    assert (len(category.train), len(category.test)) == (4, 2)


def test_defects_among_the_training_images_do_not_train(tmp_path):
    touch(tmp_path, *numbered("a/train/good/{}.png", 4), *numbered("a/train/scratch/{}.png", 2), "a/train/bad/1.png")
    touch(tmp_path, *numbered("b/train/{}.png", 4), *numbered("b/train/scratch/{}.png", 2), "b/train/NG/1.png")
    for name in ("a", "b"):
        touch(tmp_path / name, "test/good/1.png", "test/scratch/1.png")
    touch(tmp_path, *numbered("c/train/{}.png", 7), *numbered("c/test/{}.png", 3, start=7))
    for number in (0, 1, 2, 9):  # one folder of masks for both
        write_mask(tmp_path / f"c/masks/{number}.png", True)
    for category in open_dataset(str(tmp_path)).categories:
        assert len(category.train) == 4
        assert any("because they show defects: 3 of 7 images" in note for note in category.notes)
        assert Counter(image.anomalous for image in category.test)[True] == 1


def test_a_mask_that_two_images_would_share_is_refused(tmp_path):
    touch(tmp_path, *numbered("train/good/{}.png", 3), "test/dent/1.png", "test/hole/1.png", "masks/1.png")
    with pytest.raises(InputError, match=r"several images of the name that the mask .*masks/1\.png has"):
        open_dataset(str(tmp_path))
    touch(tmp_path, "masks/dent/1.png", "masks/hole/1.png")
    assert masks_of(only(tmp_path), tmp_path) == {f"test/{k}/1.png": f"masks/{k}/1.png" for k in ("dent", "hole")}


def test_a_kind_that_is_called_like_a_mask_folder_is_a_kind(tmp_path):
    touch(tmp_path, *numbered("train/good/{}.png", 3), "test/label/1.png", "ground_truth/label/1_mask.png")
    assert masks_of(only(tmp_path), tmp_path) == {"test/label/1.png": "ground_truth/label/1_mask.png"}


def test_nested_folders_and_what_cfa_wrote(tmp_path):
    touch(tmp_path, *numbered("normal/camera1/{}.png", 5), *numbered("normal/camera2/{}.png", 5))
    touch(
        tmp_path, "abnormal/dent/camera1/1.png", "abnormal/dent/camera2/1.png", "abnormal/2.png", "benchmark/maps/1.png"
    )
    (tmp_path / "benchmark/results.json").write_text('{"averages": {}, "dataset": ""}')
    category = only(tmp_path)
    assert [(image.kind, image.folder) for image in category.test if image.anomalous] == [
        ("abnormal", ""),
        ("dent", "camera1"),
        ("dent", "camera2"),
    ]
    assert (len(category.train), category.has_masks) == (8, False)


def test_only_good_or_only_bad_images(tmp_path):
    touch(tmp_path, *numbered("only_bad/train/good/{}.png", 3), "only_bad/test/dent/1.png")
    touch(tmp_path, *numbered("only_good/train/good/{}.png", 3), "only_good/test/good/1.png")
    bad, good = open_dataset(str(tmp_path)).categories
    assert "no good test images: image AUROC, F1 and false-positive rate are left blank" in bad.notes[0]
    assert "no anomalous test images: image AUROC, F1 and recall are left blank" in good.notes[0]
    assert not good.has_masks


def test_folders_that_are_named(tmp_path):
    touch(
        tmp_path, *numbered("set/a/{}.png", 5), *numbered("set/b/{}.png", 2), "set/c/1.png", *numbered("else/{}.png", 9)
    )
    touch(tmp_path, *numbered("set/m/b/{}.png", 2), "set/m/c/1_mask.png")
    root = tmp_path / "set"
    with pytest.raises(InputError, match="it has the folders a, b, c, m") as caught:
        open_dataset(str(root))
    assert "--good FOLDER --bad FOLDER --masks FOLDER" in caught.value.hint

    def read(train=None, good=None, bad=(), masks=None):
        category = only(root, None, (), name_folders(root, train, good, bad, masks))
        return len(category.train), Counter(image.kind for image in category.test), masks_of(category, root)

    pairs = {"b/0.png": "m/b/0.png", "b/1.png": "m/b/1.png", "c/1.png": "m/c/1_mask.png"}
    assert read(good="a", bad=["b", "c"], masks="m") == (4, {"good": 1, "b": 2, "c": 1}, pairs)
    assert read(str(tmp_path / "else"), "a", ["c"]) == (9, {"good": 5, "c": 1}, {"c/1.png": None})
    assert read(good="a") == (4, {"good": 1}, {})
    assert read(train="a", bad=["b"])[:2] == (5, {"b": 2})
    with pytest.raises(InputError, match="--masks: there is no folder masks"):
        read(good="a", masks="masks")
    with pytest.raises(InputError, match="needs 2"):
        read(bad=["b"])
    with pytest.raises(UsageError, match="go with a folder, not with mvtec"):
        open_dataset("mvtec", None, (), name_folders(root, None, "a", (), None))


def test_masks_elsewhere_are_named_alone(tmp_path):
    touch(tmp_path, *numbered("set/train/good/{}.png", 3), "set/test/dent/1.png", "drawn/dent/1.png")
    root = tmp_path / "set"
    category = only(root, None, (), name_folders(root, None, None, (), str(tmp_path / "drawn")))
    assert masks_of(category, tmp_path) == {"set/test/dent/1.png": "drawn/dent/1.png"}


def test_where_nothing_trains_all_good_images_are_tested_on(tmp_path):
    touch(
        tmp_path, *numbered("a/good/{}.png", 5), "a/bad/1.png", *numbered("b/test/good/{}.png", 2), "b/test/dent/1.png"
    )
    touch(tmp_path, *numbered("c/train/good/{}.png", 4), "c/test/good/1.png", "c/test/dent/1.png")
    found = open_dataset(str(tmp_path), None, (), trains=False).categories
    assert [Counter(i.kind for i in category.test)["good"] for category in found] == [5, 2, 1]
    assert [category.notes for category in found] == [(), (), ()]
    with pytest.raises(InputError, match="b has 0 training images"):
        open_dataset(str(tmp_path))


# ---- public data sets, as they are unpacked


def test_kolektorsdd_is_split_as_anomalib_does(tmp_path):
    """Items of eight parts; a good part has an empty label. scikit-learn draws the split that is expected."""
    root, good = tmp_path / "KolektorSDD", []
    for item in range(1, 51):
        for part in range(8 if item > 1 else 7):  # 399 parts
            path = root / f"kos{item:02}/Part{part}.jpg"
            bad = item > 24 and part in (1, 4)  # 52
            write_mask(path.with_name(f"Part{part}_label.bmp"), bad)
            path.touch()
            good += [] if bad else [path]
    (category,) = open_dataset("kolektorsdd", tmp_path).categories
    train, test = train_test_split(sorted(good), train_size=0.8, random_state=42)
    assert category.train == tuple(sorted(train))
    assert [image.path for image in category.test if not image.anomalous] == sorted(test)
    assert sum(image.anomalous for image in category.test) == 52
    assert all(image.mask.name == f"{image.path.stem}_label.bmp" for image in category.test if image.anomalous)
    assert category.test[0].folder.startswith("kos")
    assert only(root).train == category.train  # and the same by its folder
    (root / "kos30/Part0.jpg").unlink()
    with pytest.raises(InputError, match="KolektorSDD has 276 training images, not 277"):
        open_dataset("kolektorsdd", root)


def test_kolektorsdd2(tmp_path):
    for part, goods, bads in [("train", 6, 2), ("test", 3, 2)]:
        for number in range(goods + bads):
            touch(tmp_path, f"{part}/2{number:04}.png")
            write_mask(tmp_path / f"{part}/2{number:04}_GT.png", number >= goods)
    touch(tmp_path, "train/20001 (copy).png")  # neither good nor bad: it has no mask
    (category,) = open_dataset("kolektorsdd2", tmp_path).categories
    assert [path.name for path in category.train] == numbered("2000{}.png", 6)
    assert Counter(image.kind for image in category.test) == {"good": 3, "bad": 2}
    assert masks_of(category, tmp_path) == {f"test/2000{n}.png": f"test/2000{n}_GT.png" for n in (3, 4)}
    assert any("have none: 1 of 9 images" in note and "20001 (copy).png" in note for note in category.notes)
    assert any("because they show defects: 2 of 8 images" in note for note in category.notes)
    assert only(tmp_path).train == category.train


def test_dagm(tmp_path):
    for number in range(1, 11):
        for part in ("Train", "Test"):
            touch(tmp_path, *numbered(f"DAGM2007/Class{number}/{part}/000{{}}.PNG", 5))
            write_mask(tmp_path / f"DAGM2007/Class{number}/{part}/Label/0002_label.PNG", True)
            (tmp_path / f"DAGM2007/Class{number}/{part}/Label/Labels.txt").touch()
    dataset = open_dataset("dagm", tmp_path)
    assert [category.name for category in dataset.categories] == numbered("Class{}", 10, 1)
    for category in dataset.categories:
        assert (len(category.train), Counter(i.kind for i in category.test)) == (4, {"good": 4, "bad": 1})
        assert category.has_masks
    (tmp_path / "DAGM2007/Class3/Test/Label/0002_label.PNG").unlink()
    with pytest.raises(InputError, match="Class3 has no good test images; Class3 has no anomalous test images"):
        open_dataset("dagm", tmp_path)


def test_mvtec_loco_is_judged_by_images(tmp_path):
    for name in ("breakfast_box", "juice_bottle"):
        folder = tmp_path / "mvtec_loco_anomaly_detection" / name
        touch(
            folder, *numbered("train/good/{:03}.png", 4), *numbered("validation/good/{:03}.png", 2), "test/good/000.png"
        )
        for kind in ("logical_anomalies", "structural_anomalies"):
            touch(folder, *numbered(f"test/{kind}/00{{}}.png", 2))
            touch(folder, *(f"ground_truth/{kind}/00{n}/00{m}.png" for n in range(2) for m in range(n + 1)))
    dataset = open_dataset("mvtec-loco", tmp_path, ["juice_bottle"])
    (category,) = dataset.categories
    assert dataset.name == "MVTec LOCO AD"
    assert Counter(i.kind for i in category.test) == {"good": 1, "logical_anomalies": 2, "structural_anomalies": 2}
    assert (len(category.train), category.has_masks) == (4, False)
    assert any("images alone are judged" in note for note in category.notes)
    assert any("images in validation were not used" in note for note in category.notes)


def test_mvtec_ad_2(tmp_path):
    folder = tmp_path / "mvtec_ad_2/can"
    touch(folder, *numbered("train/good/{:03}_regular.png", 4), "validation/good/000_regular.png")
    touch(folder, "test_public/good/000_regular.png", *numbered("test_public/bad/{:03}_regular.png", 2))
    touch(folder, *numbered("test_public/ground_truth/bad/{:03}_regular_mask.png", 2), "test_private/000.png")
    (category,) = open_dataset("mvtec-ad2", tmp_path, ["can"]).categories
    assert (len(category.train), Counter(i.kind for i in category.test)) == (4, {"good": 1, "bad": 2})
    assert category.has_masks
    with pytest.raises(
        InputError, match=r"no folder fabric, fruit_jelly, rice, sheet_metal, vial, wallplugs, walnuts\."
    ):
        open_dataset("mvtec-ad2", tmp_path)
