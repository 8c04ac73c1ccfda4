"""`find_images`, `find_good_images` and `find_sources` on small trees; no image is decoded."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pytest

from cfa_cli.data.inputs import find_good_images, find_images, find_sources
from cfa_cli.errors import InputError
from cfa_cli.notes import LeftOut


def plant(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_images(root)]


@pytest.fixture(autouse=True)
def _work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_images_are_found_below_sorted_and_without_hidden_ones(tmp_path: Path) -> None:
    wanted = ["B.JPG", "a/2.png", "a/10.tiff", "a/b/c.WebP", "a-b/1.bmp", "ü/ö.jpeg", "z.tif", "z.jfif"]
    hidden = [".x.png", "a/._2.png", ".cache/1.png", "a/.git/1.png"]
    others = ["notes.txt", "a/scores.csv", "moving.gif", "png"]
    left_out = LeftOut()
    everything = wanted + hidden + others
    random.Random(0).shuffle(everything)
    plant(tmp_path / "one", *everything)
    assert names(tmp_path / "one") == sorted(wanted)
    plant(tmp_path / "two", *reversed(everything))
    assert names(tmp_path / "two") == sorted(wanted)
    find_images(tmp_path / "two", left_out)
    assert left_out.formats == {".txt": 1, ".gif": 1, "no suffix": 1}
    assert find_images(Path("one"))[0] == Path("one/B.JPG"), "a relative folder gives relative paths"


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    outside = plant(tmp_path / "outside", "far.png")
    root = plant(tmp_path / "root", "real/1.png", "2.png")
    (root / "a-link").symlink_to(root / "real")  # found under its real name
    (root / "real" / "up").symlink_to(root)
    (root / "real" / "self").symlink_to(root / "real")
    (root / "elsewhere").symlink_to(outside)
    (outside / "back").symlink_to(root)
    (root / "nowhere.png").symlink_to(tmp_path / "gone.png")  # kept: reading it reports it
    assert names(root) == ["2.png", "elsewhere/far.png", "nowhere.png", "real/1.png"]


def test_no_folder_a_file_and_no_images(tmp_path: Path) -> None:
    plant(tmp_path, "parts/good/1.png", "texts/a.txt", "texts/b/c.TXT", "texts/d.heic", "texts/e")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"There is no folder prats\.") as error:
        find_images(Path("prats"))
    assert error.value.hint == "Did you mean parts?"
    with pytest.raises(InputError, match="There is no folder some/where/else") as error:
        find_images(Path("some/where/else"))
    assert error.value.hint == f"Check the path; it was looked for from {tmp_path}."
    with pytest.raises(InputError, match=r"parts/good/1\.png is a file, not a folder") as error:
        find_images(Path("parts/good/1.png"))
    assert error.value.hint == "Give the folder that holds it: parts/good"
    with pytest.raises(InputError, match=r"no images in texts \(looked for \.bmp, .*\.webp; other files: 2 x \.txt, 1"):
        find_images(Path("texts"))
    with pytest.raises(InputError, match=r"There are no files in empty"):
        find_images(Path("empty"))


def test_a_folder_that_cannot_be_listed_is_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path / "root", "1.png", "locked/2.png")
    (root / "locked").chmod(0)
    if os.access(root / "locked", os.R_OK):  # root may list everything
        scandir = os.scandir

        def refuse(path: str):
            if str(path).endswith("locked"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"Cannot list .*locked: Permission denied\."):
        find_images(root)
    with pytest.raises(InputError, match=r"Cannot list .*locked: Permission denied\."):
        find_images(root / "locked")
    (root / "locked").chmod(0o755)


@pytest.mark.parametrize(
    ("given", "beside"),
    [
        ("bottle", "test/cracked/1.png"),
        ("bottle", "ground_truth/cracked/1_mask.png"),
        ("bottle/test", "test/cracked/1.png"),
        ("bottle/ground_truth", "ground_truth/cracked/1_mask.png"),
        (".", "test/cracked/1.png"),
    ],
)
def test_mvtec_layout_is_not_trained_on(tmp_path: Path, given: str, beside: str) -> None:
    plant(tmp_path, "bottle/train/good/1.png", f"bottle/{beside}")
    with pytest.raises(InputError, match="MVTec's layout") as error:
        find_good_images(Path(given))
    assert error.value.hint is not None
    command, argument = error.value.hint.rsplit(" ", 1)
    assert command.endswith("cfa fit")
    assert Path(argument).resolve() == tmp_path / "bottle/train/good"


def test_mvtec_hint_can_be_pasted_and_its_good_images_are_fine(tmp_path: Path) -> None:
    plant(tmp_path, "my bottle/train/good/1.png", "my bottle/test/good/2.png")
    with pytest.raises(InputError) as error:
        find_good_images(Path("my bottle"))
    assert error.value.hint == "Train on its good images: cfa fit 'my bottle/train/good'"
    good = Path("my bottle/train/good")
    assert find_good_images(good) == find_good_images(Path("my bottle/train/good/")) == [good / "1.png"]
    assert find_good_images(Path("my bottle/train")) == [good / "1.png"]


def found(*inputs: str, stdin: Iterable[str] | None = None) -> list[tuple[str, str]]:
    return [(str(source.path), source.name) for source in find_sources(inputs, stdin)]


@pytest.mark.parametrize(("listed", "at_once"), [("", False), ("sub", True), ("sub", False)])
def test_a_folder_that_vanishes_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, at_once: bool
) -> None:
    """After its folder was listed, as it is to be listed itself, or just after."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").touch()
    list_folder = os.scandir

    class Listing:
        def __init__(self, path: str) -> None:
            here = Path(path) == tmp_path / listed
            if here and at_once:
                (tmp_path / "sub").rmdir()
            with list_folder(path) as entries:
                self._entries = iter(list(entries))
            if here and not at_once and (tmp_path / "sub").exists():
                (tmp_path / "sub").rmdir()

        def __enter__(self) -> Listing:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __iter__(self) -> Listing:
            return self

        def __next__(self) -> os.DirEntry[str]:
            return next(self._entries)

        def close(self) -> None: ...

    monkeypatch.setattr(os, "scandir", Listing)
    assert find_images(tmp_path) == [tmp_path / "a.png"]
    assert not (tmp_path / "sub").exists()


def test_one_folder_mirrors_its_tree(tmp_path: Path) -> None:
    plant(tmp_path, "parts/b/1.png", "parts/a/1.png", "parts/0.jpg", "parts/notes.txt")
    expected = [("parts/0.jpg", "0.jpg"), ("parts/a/1.png", "a/1.png"), ("parts/b/1.png", "b/1.png")]
    assert found("parts") == found("parts/") == expected
    assert [name for _, name in found(str(tmp_path / "parts"))] == ["0.jpg", "a/1.png", "b/1.png"]
    assert [name for _, name in found("parts/../parts/.")] == ["0.jpg", "a/1.png", "b/1.png"]


def test_files_keep_their_order_and_are_taken_once(tmp_path: Path) -> None:
    plant(tmp_path, "p/b.png", "p/a.png", "p/weird.dat")
    (tmp_path / "link").symlink_to("p")
    assert found("p/b.png", "p/a.png", "./p/b.png", str(tmp_path / "p/a.png"), "link/b.png", "p") == [
        ("p/b.png", "b.png"),
        ("p/a.png", "a.png"),
    ]
    assert found("p/weird.dat") == [("p/weird.dat", "weird.dat")], "a named file counts whatever its suffix"


def test_same_names_in_several_folders_never_collide(tmp_path: Path) -> None:
    plant(tmp_path, "x/line1/good/1.png", "x/line2/good/1.png", "y/1.png")
    assert [name for _, name in found("x/line1", "x/line2")] == ["line1/good/1.png", "line2/good/1.png"]
    assert [name for _, name in found("x/line2/good/1.png", "y")] == ["x/line2/good/1.png", "y/1.png"]
    os.chdir("x/line1")
    assert found("../../y", ".") == [("../../y/1.png", "y/1.png"), ("good/1.png", "x/line1/good/1.png")]


def test_names_differ_without_case_and_unicode_form_too(tmp_path: Path) -> None:
    composed, decomposed = "\u00e9.png", "e\u0301.png"
    plant(tmp_path, "p/A/1.png", "p/a/1.png", "p/a/1~2.png", "p/a.jpg", "p/a.png", f"p/{composed}", f"p/{decomposed}")
    if len(list((tmp_path / "p").iterdir())) < 6:
        pytest.skip("this file system keeps only one of them")
    given = [name for _, name in found("p")]
    assert given == ["A/1.png", "a.jpg", "a.png", "a/1~2.png", "a/1~2~2.png", "e\u0301.png", "\u00e9~2.png"]


def test_names_are_relative_text(tmp_path: Path) -> None:
    plant(tmp_path, "p/a\nb.png", "p/c d.png", "q/~.png")
    raw = os.fsencode(tmp_path / "p") + b"/\xff.png"
    with open(raw, "wb"):  # noqa: PTH123  (a name that is no text)
        pass
    for inputs in (["p"], ["p", "q"], ["p/../q", str(tmp_path / "p")], ["/", "p"][1:]):
        for source in find_sources(inputs):
            assert source.path.exists()
            source.name.encode("utf-8")
            assert not PurePosixPath(source.name).is_absolute()
            assert ".." not in PurePosixPath(source.name).parts


def test_globs(tmp_path: Path) -> None:
    plant(tmp_path, "p/b/2.png", "p/a/1.png", "p/a/x/3.PNG", "p/a/notes.txt", "p/.h/4.png", "p/1[a].png", "p/1a.png")
    assert found("p/*/*.png") == [("p/a/1.png", "a/1.png"), ("p/b/2.png", "b/2.png")]
    every = ["1[a].png", "1a.png", "a/1.png", "a/x/3.PNG", "b/2.png"]
    assert sorted(name for _, name in found("p/**")) == every
    assert sorted(name for _, name in found("p/*")) == every, "folders that match are searched"
    assert found("p/a/*/../*.png") == [("p/a/x/../1.png", "1.png")]
    assert found("p/a/*/../../b/*.png") == [("p/a/x/../../b/2.png", "b/2.png")], "beside the fixed part"
    assert [name for _, name in found("p/**/*.png")] == ["1[a].png", "1a.png", "a/1.png", "b/2.png"]
    assert found("p/*/../*1a.png") == [("p/a/../1a.png", "1a.png")]
    assert found("p/1[a].png") == [("p/1[a].png", "1[a].png")], "a file of that very name goes first"
    assert found(f"{tmp_path}/p/b/?.png") == [(f"{tmp_path}/p/b/2.png", "2.png")]
    for pattern in ("p/*.jpg", "p/a/n*", "nowhere/**/*.png"):
        with pytest.raises(InputError, match=r"The pattern .* matches no images\."):
            find_sources([pattern])


def test_paths_on_standard_input(tmp_path: Path) -> None:
    plant(tmp_path, "p/a.png", "p/ b .png", "p/c/d.png")
    lines = ["p/a.png\n", "\n", "p/ b .png\r\n", "p/gone.png\n", "p/c\n", "p/a.png"]
    expected = [
        ("p/a.png", "a.png"),
        ("p/ b .png", " b .png"),
        ("p/gone.png", "gone.png"),  # gets its row, with the error
        ("p/c/d.png", "c/d.png"),
    ]
    assert found("-", stdin=lines) == expected
    assert found("p/a.png", "-", "-", stdin=iter(lines)) == expected
    for nothing in (None, [], ["\n"]):
        with pytest.raises(InputError, match="no paths on standard input"):
            find_sources(["-"], nothing)
    with pytest.raises(InputError, match="null characters") as error:
        find_sources(["-"], ["p/a.png\0p/c/d.png\0"])
    assert error.value.hint == "Give one path a line."


def test_missing_arguments_and_models(tmp_path: Path) -> None:
    plant(tmp_path, "p/photo.png", "my model.safetensors")
    with pytest.raises(InputError, match=r"There is no file or folder p/foto\.png\.") as error:
        find_sources(["p", "p/foto.png"])
    assert error.value.hint == "Did you mean p/photo.png?"
    with pytest.raises(InputError, match=r"There is no file or folder p/photo\.png/1\.png\."):
        find_sources(["p/photo.png/1.png"])
    with pytest.raises(InputError, match=r"my model\.safetensors is a model, not an image\.") as error:
        find_sources(["my model.safetensors"])
    assert error.value.hint == "Give it with --model 'my model.safetensors'"
    with pytest.raises(InputError, match=r"p/m\.ONNX is a model"):
        find_sources(["p/m.ONNX"])
    (tmp_path / "p/link.png").symlink_to("gone.png")
    assert found("p/link.png") == [("p/link.png", "link.png")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="There are no files in empty"):
        find_sources(["p", "empty"])


def test_names_stay_apart_in_random_trees(tmp_path: Path) -> None:
    random_ = random.Random(1)
    folders = ["", "a/", "A/", "a/b/", "c/a/", "c/a/b/"]
    files = [
        f"{random_.choice(folders)}{random_.choice('xyXY')}{random_.choice(['.png', '.jpg', '.PNG'])}"
        for _ in range(60)
    ]
    plant(tmp_path / "t", *files)
    for _ in range(50):
        inputs = [f"t/{random_.choice([*folders, *files])}" for _ in range(random_.randint(1, 5))]
        sources = find_sources(inputs)
        results = [f"{source.name}.png".casefold() for source in sources]
        assert len(set(results)) == len(results)
        assert len({os.path.realpath(source.path) for source in sources}) == len(sources)
        assert sources == find_sources(inputs)
        wanted = {
            path for text in inputs for path in (Path(text).rglob("*.*") if Path(text).is_dir() else [Path(text)])
        }
        assert {source.path for source in sources} == wanted
