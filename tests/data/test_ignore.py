"""What is ignored, as users give it: masks, polygons, folders; and what is wrong with these."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfa_cli.data.ignore import find_ignore_masks, read_ignored
from cfa_cli.errors import InputError

TRUE = np.zeros((60, 80), np.uint8)
TRUE[10:30, 20:70] = 1


def write(path: Path, content: np.ndarray | object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        path.write_bytes(cv2.imencode(path.suffix, content)[1].tobytes())
    else:
        path.write_text(json.dumps(content))
    return path


def test_masks_are_read_as_the_masks_of_defects_are_and_may_be_empty_or_full(tmp_path: Path) -> None:
    for name, values in {"a.png": TRUE * 255, "b.png": TRUE, "c.bmp": TRUE * 255}.items():
        np.testing.assert_array_equal(read_ignored(write(tmp_path / name, values)), TRUE)
    soft = read_ignored(write(tmp_path / "soft.jpg", TRUE * 255))
    assert np.mean(soft != TRUE) < 0.01
    for value in (0, 255):
        assert (read_ignored(write(tmp_path / "one.png", np.full((60, 80), value, np.uint8))) == bool(value)).all()


SQUARE = [[20, 10], [70, 10], [70, 30], [20, 30]]
DRAWN = {
    "polygons": {"polygons": [SQUARE], "size": [80, 60]},
    "labelme": {"shapes": [{"label": "x", "points": SQUARE}], "imageWidth": 80, "imageHeight": 60},
    "rectangle": {
        "shapes": [{"points": [[70.0, 30.0], [20.0, 10.0]], "shape_type": "rectangle"}],
        "imageWidth": 80,
        "imageHeight": 60,
    },
    "overlapping": {"polygons": [SQUARE, SQUARE], "size": [80, 60]},
}


@pytest.mark.parametrize("kind", DRAWN)
def test_polygons_cover_the_pixels_whose_centres_they_hold(tmp_path: Path, kind: str) -> None:
    found = read_ignored(write(tmp_path / "drawn.json", DRAWN[kind]))
    assert found.shape == TRUE.shape
    assert found[TRUE == 1].all()
    assert not found[cv2.dilate(TRUE, np.ones((3, 3), np.uint8)) == 0].any()  # an edge may take one pixel more


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"size": [80, 60]}, "polygons is missing"),
        ({"polygons": []}, "size is missing"),
        ({"polygons": [], "size": [80]}, "not of that form"),
        ({"polygons": [], "size": [0, 60]}, "its size is not"),
        ({"polygons": [], "size": [True, 60]}, "its size is not"),
        ({"polygons": [], "size": [200_000, 200_000]}, "its size is 200000 x 200000 px"),
        ({"polygons": [SQUARE[:2]], "size": [80, 60]}, "fewer than 3 corners"),
        ({"polygons": [[[0, 0], [90, 0], [0, 9]]], "size": [80, 60]}, "a corner at 90, 0 lies outside of its 80 x 60"),
        ({"polygons": [[[0, 0], [float("nan"), 0], [0, 9]]], "size": [80, 60]}, "a corner at nan"),
        ({"polygons": [[[0, 0], [10**400, 0], [0, 9]]], "size": [80, 60]}, "not of that form"),
        ({"polygons": [[0, 1, 2]], "size": [80, 60]}, "not of that form"),
        ({"polygons": 3, "size": [80, 60]}, "not of that form"),
        (
            {"shapes": [{"points": [[1, 2]], "shape_type": "circle"}], "imageWidth": 80, "imageHeight": 60},
            "no other shapes",
        ),
        ({"shapes": ["x"], "imageWidth": 80, "imageHeight": 60}, "not of that form"),
        ([1], "not of that form"),
        (3, "not of that form"),
    ],
    ids=str,
)
def test_what_is_wrong_with_polygons_is_one_sentence(tmp_path: Path, content: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        read_ignored(write(tmp_path / "drawn.json", content))
    assert str(tmp_path) in caught.value.message
    assert '"polygons"' in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"P5 90000 90000 255\n"])
@pytest.mark.parametrize("suffix", [".json", ".png"])
def test_hostile_files(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="mask"):
        read_ignored(path)


def test_a_folder_gives_each_image_the_mask_that_shares_most_of_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    for name in ("000.png", "good/000.png", "test/good/000.json", "001.jpg"):
        write(folder / name, TRUE * 255 if not name.endswith("json") else DRAWN["polygons"])
    masks = find_ignore_masks(folder)

    def found(image: str) -> str | None:
        path = masks.find(Path(image))
        return None if path is None else path.relative_to(folder).as_posix()

    assert found("/data/bolt/test/good/000.jpg") == "test/good/000.json"
    assert found("/data/bolt/train/good/000.jpg") == "good/000.png"
    assert found("000.tiff") == found("elsewhere/000.bmp") == "000.png"
    assert found("good/001.png") == "001.jpg"
    assert found("good/002.png") is None


def test_what_is_not_there_or_names_no_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is nothing at"):
        find_ignore_masks(tmp_path / "gone.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="There are no masks in"):
        find_ignore_masks(tmp_path / "empty")
    write(tmp_path / "masks" / "a.png", TRUE)
    with pytest.raises(InputError, match=r"images are called b\.png, masks a\.png"):
        find_ignore_masks(tmp_path / "masks", [Path("b.png")])
    write(tmp_path / "masks" / "a.json", DRAWN["polygons"])
    with pytest.raises(InputError, match="both say what is ignored of one image"):
        find_ignore_masks(tmp_path / "masks")
