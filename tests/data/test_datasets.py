"""Data sets on disk: layouts, splits, and what is said when something is missing. Empty files: names count."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfa_cli.data.datasets import KNOWN, Dataset, open_dataset
from cfa_cli.errors import InputError, UsageError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def mvtec_tree(root: Path, name: str, train: int, good: int, bad: int, kinds=("crack", "hole")) -> Path:
    """MVTec's own layout; the anomalous images are dealt out to the kinds."""
    folder = root / name
    touch(*(folder / "train/good" / f"{i:03}.png" for i in range(train)))
    touch(*(folder / "test/good" / f"{i:03}.png" for i in range(good)))
    for i in range(bad):
        kind = kinds[i % len(kinds)]
        touch(folder / f"test/{kind}/{i:03}.png", folder / f"ground_truth/{kind}/{i:03}_mask.png")
    return folder


def counts(dataset: Dataset) -> dict[str, tuple[int, int, int]]:
    return {
        c.name: (len(c.train), sum(not t.anomalous for t in c.test), sum(t.anomalous for t in c.test))
        for c in dataset.categories
    }


def test_mvtec(tmp_path):
    mvtec_tree(tmp_path / "mvtec_anomaly_detection", "toothbrush", 60, 12, 30)
    dataset = open_dataset("mvtec", tmp_path, ["toothbrush"])
    assert (dataset.name, counts(dataset)) == ("MVTec AD", {"toothbrush": (60, 12, 30)})
    (category,) = dataset.categories
    assert category.has_masks
    assert {t.kind for t in category.test} == {"good", "crack", "hole"}
    assert all(t.mask.name == f"{t.path.stem}_mask.png" and t.mask.parent.name == t.kind for t in category.test[12:])
    assert open_dataset("mvtec", tmp_path / "mvtec_anomaly_detection", ["toothbrush"]) == dataset


@pytest.mark.parametrize(("name", "images"), [("mvtec", (3629, 467, 1258)), ("visa", (8659, 962, 1200))])
def test_the_published_totals(name, images):
    assert tuple(map(sum, zip(*KNOWN[name].counts.values(), strict=True))) == images
    assert tuple(map(sum, zip(*KNOWN["mpdd"].counts.values(), strict=True))) == (888, 176, 282)
    assert tuple(map(sum, zip(*KNOWN["btad"].counts.values(), strict=True))) == (1799, 451, 290)


def test_an_incomplete_mvtec_is_named_precisely(tmp_path):
    mvtec_tree(tmp_path, "toothbrush", 59, 12, 30)
    mvtec_tree(tmp_path, "wood", 247, 19, 60)
    (tmp_path / "wood/ground_truth/crack/000_mask.png").unlink()
    with pytest.raises(InputError) as caught:
        open_dataset("mvtec", tmp_path, ["wood", "toothbrush", "zipper"])
    text = caught.value.message
    assert "toothbrush has 59 training images, not 60" in text
    assert f"wood has 59 of 60 masks (none for {tmp_path / 'wood/test/crack/000.png'})" in text
    assert "no folder zipper (391 images)" in text
    assert "test images" not in text
    (tmp_path / "toothbrush/ground_truth/hole/001_mask.png").unlink()
    touch(*(tmp_path / f"toothbrush/train/good/more{i}.png" for i in range(2)))
    with pytest.raises(
        InputError, match=r"no folder bottle \(292 images\), .*; toothbrush has 61 training images, not 60"
    ):
        open_dataset("mvtec", tmp_path)


@pytest.mark.parametrize("name", KNOWN)
def test_data_that_is_not_there(tmp_path, name):
    with pytest.raises(InputError) as caught:
        open_dataset(name, tmp_path)
    assert str(tmp_path) in caught.value.message
    assert KNOWN[name].where in caught.value.hint
    assert KNOWN[name].licence in caught.value.hint
    assert "--data-root" in caught.value.hint
    assert ("--download" in caught.value.hint) is (KNOWN[name].download is not None)


def test_btad_mixes_formats(tmp_path):
    folder = tmp_path / "BTech_Dataset_transformed/01"
    touch(*(folder / f"train/ok/{i:04}.bmp" for i in range(400)), *(folder / f"test/ok/{i:04}.bmp" for i in range(21)))
    touch(
        *(folder / f"test/ko/{i:04}.bmp" for i in range(49)),
        *(folder / f"ground_truth/ko/{i:04}.png" for i in range(49)),
    )
    dataset = open_dataset("btad", tmp_path, ["01"])
    assert counts(dataset) == {"01": (400, 21, 49)}
    bad = dataset.categories[0].test[21]
    assert (bad.path.name, bad.kind, bad.mask.name) == ("0000.bmp", "ko", "0000.png")


def test_visa_goes_by_its_split_file(tmp_path):
    rows = ["object,split,label,image,mask"]
    for split, label, total in [("train", "normal", 450), ("test", "normal", 50), ("test", "anomaly", 100)]:
        for i in range(total):
            image = f"fryum/Data/Images/{'Normal' if label == 'normal' else 'Anomaly'}/{split}{i:03}.JPG"
            mask = f"fryum/Data/Masks/Anomaly/{i:03}.png" if label == "anomaly" else ""
            rows.append(f"fryum,{split},{label},{image},{mask}")
            touch(tmp_path / image, *([tmp_path / mask] if mask else []))
    touch(tmp_path / "fryum/Data/Images/Normal/not_in_the_split.JPG")
    with pytest.raises(InputError, match=r"split file is missing: .*1cls\.csv"):
        open_dataset("visa", tmp_path, ["fryum"])
    touch(tmp_path / "split_csv/1cls.csv")
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(rows))
    dataset = open_dataset("visa", tmp_path, ["fryum"])
    assert counts(dataset) == {"fryum": (450, 50, 100)}
    assert dataset.categories[0].has_masks
    (tmp_path / "fryum/Data/Images/Normal/train007.JPG").unlink()
    with pytest.raises(InputError, match="fryum has 449 training images, not 450"):
        open_dataset("visa", tmp_path, ["fryum"])
    with pytest.raises(InputError, match="holds VisA, whose layout is its own") as caught:
        open_dataset(str(tmp_path))
    assert f"cfa benchmark visa --data-root {tmp_path}" in caught.value.hint


def test_a_folder_of_many_categories_or_one(tmp_path):
    mvtec_tree(tmp_path, "bolt", 3, 1, 2)
    mvtec_tree(tmp_path, "nut", 4, 2, 1)
    touch(tmp_path / "notes/readme.txt", tmp_path / "nut/train/good/.hidden.png", tmp_path / "nut/train/good/list.txt")
    assert counts(open_dataset(str(tmp_path))) == {"bolt": (3, 1, 2), "nut": (4, 2, 1)}
    assert counts(open_dataset(str(tmp_path), None, ["nut"])) == {"nut": (4, 2, 1)}
    assert counts(open_dataset(str(tmp_path / "nut"))) == {"nut": (4, 2, 1)}


def test_a_folder_without_masks(tmp_path):
    folder = mvtec_tree(tmp_path, "bolt", 3, 1, 2)
    masks = list((folder / "ground_truth").rglob("*.png"))
    masks[0].unlink()
    with pytest.raises(InputError, match="bolt has 1 of 2 masks"):
        open_dataset(str(folder))
    masks[1].unlink()
    with pytest.raises(InputError, match="bolt has 0 of 2 masks"):
        open_dataset(str(folder))
    for empty in sorted((folder / "ground_truth").rglob("*"), reverse=True):
        empty.rmdir()
    (folder / "ground_truth").rmdir()
    assert not open_dataset(str(folder)).categories[0].has_masks


@pytest.mark.parametrize("lacking", ["train/good", "test"])
def test_a_folder_that_lacks_a_part(tmp_path, lacking):
    folder = mvtec_tree(tmp_path, "bolt", 3, 1, 2, kinds=("KIND",))
    for path in (folder / lacking).rglob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=f"bolt has (0|no) .*{lacking}"):
        open_dataset(str(tmp_path))


def test_a_category_without_training_images_is_not_passed_over(tmp_path):
    mvtec_tree(tmp_path, "bolt", 3, 1, 2)
    mvtec_tree(tmp_path, "nut", 0, 1, 2)
    with pytest.raises(InputError, match=r"nut has 0 training images .*, and needs 2\.$"):
        open_dataset(str(tmp_path))
    assert counts(open_dataset(str(tmp_path), None, ["bolt"])) == {"bolt": (3, 1, 2)}


def test_names_that_are_nothing(tmp_path):
    with pytest.raises(UsageError) as caught:
        open_dataset("mvtek")
    assert caught.value.hint == "Did you mean mvtec?"
    with pytest.raises(InputError, match="in no layout that is read"):
        open_dataset(str(tmp_path))
    with pytest.raises(UsageError) as caught:
        open_dataset("mvtec", tmp_path, ["toothbrusch"])
    assert caught.value.hint == "Did you mean toothbrush?"
    with pytest.raises(UsageError, match="--data-root"):
        open_dataset(str(tmp_path), tmp_path)


def test_kinds_in_subfolders_and_masks_of_other_names(tmp_path):
    folder = mvtec_tree(tmp_path, "bolt", 3, 1, 0)
    for camera in ("camera1", "camera2"):
        touch(folder / f"test/spot/{camera}/1.png", folder / f"ground_truth/spot/{camera}/1_mask.png")
    touch(folder / "test/spot/.hidden/1.png")
    (category,) = open_dataset(str(folder)).categories
    found = [(image.path.parent.name, image.mask.parent.name) for image in category.test if image.anomalous]
    assert found == [("camera1", "camera1"), ("camera2", "camera2")]
    for camera in ("camera1", "camera2"):
        (folder / f"ground_truth/spot/{camera}/1_mask.png").rename(folder / f"ground_truth/spot/{camera}/no1.png")
    with pytest.raises(InputError, match=r"0 of 2 masks .*; looked for 1_mask, 1_GT, .* or 1, .*; there is no1\.png"):
        open_dataset(str(folder))
