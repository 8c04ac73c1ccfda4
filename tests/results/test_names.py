"""Names of result files: nothing meets, on no file system, and nothing leaves the folder."""

import os
import random
from pathlib import Path, PurePosixPath

import pytest

from cfa_cli.results.names import SUFFIXES, FileNames, is_safe
from cfa_cli.results.writer import ResultWriter
from tests.results.runs import make_bundle, make_prediction


def test_a_name_is_the_images_own_without_its_suffix_where_that_is_free():
    names = FileNames()
    claimed = [names.claim(n) for n in ["a.jpg", "x/b.c.png", "a.png", "A.bmp", "a.tif", "noext", "../c.png", "/d.png"]]
    assert claimed == ["a", "x/b.c", "a.png", "A.bmp", "a.tif", "noext", "c", "d"]


def test_whatever_the_images_are_called_no_two_files_meet():
    """Draw names from the few parts that can collide, and look at every file and folder that comes of them."""
    chance = random.Random(0)
    parts = ["a", "A", "a.png", "a.jpg", "a.full", "a.full.jpg", "a.mask", "a.png.png", "a~2", "b.tiff"]
    for _ in range(300):
        names = FileNames()
        inputs = {"/".join(chance.choices(parts, k=chance.randint(1, 3))) for _ in range(12)}
        files, folders = [], set()
        for name in map(names.claim, sorted(inputs, key=lambda _: chance.random())):
            assert is_safe(name)
            files += [(name + suffix).casefold() for suffix in SUFFIXES]
            folders |= {str(parent) for parent in PurePosixPath(name.casefold()).parents}
        assert len(files) == len(set(files)), inputs
        assert not folders & set(files), inputs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CON.png", "_CON"),
        ("con", "_con"),
        ("lpt1.old.png", "_lpt1.old"),
        ("console.png", "console"),
        ("NUL/x.png", "_NUL/x"),
        ("a. /b.png", "a/b"),
        ("cam:1?.png", "cam_1_"),
        ("a\\\\b.png", "a__b"),
        ("...", "_"),
        ("tab\there.png", "tab_here"),
    ],
)
def test_what_windows_cannot_hold_gets_another_name_there(name, expected):
    assert FileNames(windows=True).claim(name) == expected
    assert FileNames(windows=False).claim(name) == str(PurePosixPath(name).with_suffix(""))


def test_long_names_are_cut_to_what_every_file_system_holds_and_stay_apart(tmp_path):
    ending = ".full.jpg"
    for character in ("x", "部", "\U0001f600"):
        names = FileNames()
        claimed = [names.claim(f"{character * 250}{i}.tif") for i in range(3)] + [
            names.claim(f"{character * 250}/a.png")
        ]
        assert len(set(claimed)) == 4
        assert all(len(os.fsencode(part + ending)) <= 255 for name in claimed for part in name.split("/"))
        assert all(name.startswith(character * 20) for name in claimed)
    names = [f"{'x' * 251}.png", f"{'部' * 83}.tif", f"{'d' * 255}/{'e' * 255}/a.png"]
    with ResultWriter(tmp_path, make_bundle(), ("map", "overlay")) as writer:
        for name in names:
            writer.write(make_prediction(Path(name), 1.0, name))
    assert writer.unwritten == []
    assert len(list((tmp_path / "overlays").rglob("*.png"))) == 3


def test_a_file_beside_a_folder_of_its_results_name(tmp_path):
    names = ["a.jpg", "a.png/b.jpg", "a.png/c.jpg", "d.tiff/x.png", "d.bmp", "e.full.jpg", "e.tif"]
    with ResultWriter(tmp_path, make_bundle(), ("map", "overlay")) as writer:
        for name in names:
            writer.write(make_prediction(Path(name), 1.0, name))
    assert writer.unwritten == []
    written = sorted(
        path.relative_to(tmp_path / "overlays").as_posix() for path in (tmp_path / "overlays").rglob("*.png")
    )
    assert [name for name in written if (tmp_path / "overlays" / name).is_file()] == [
        *("a.png", "a.png~2/b.png", "a.png~2/c.png", "d.bmp.png", "d.tiff/x.png", "e.full.png", "e.tif.png"),
    ]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        *(
            ("a", True),
            ("a/b c.d", True),
            ("..a/b..", True),
            ("", False),
            ("/a", False),
            ("a/../b", False),
            ("..", False),
        ),
        *(("a\\..\\b", False), ("\\\\host\\x", False), ("c:x", False), ("a\0", False), (None, False), (1, False)),
    ],
)
def test_names_from_files_of_others(name, safe):
    assert is_safe(name) is safe
