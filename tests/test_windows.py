"""What Windows does otherwise than POSIX systems, simulated at the calls that differ."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cfa_cli.atomic import atomic_path
from cfa_cli.bundle import check_free
from cfa_cli.data.inputs import find_images, find_sources
from cfa_cli.errors import InputError
from cfa_cli.records import Source
from cfa_cli.results.writer import ResultWriter
from cfa_cli.text import command_line
from tests.results.runs import make_bundle, make_prediction


def plant(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def found(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_images(root)]


def test_a_file_is_flushed_through_a_handle_that_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, fsync of a descriptor that is open for reading alone fails with EBADF."""
    fcntl = pytest.importorskip("fcntl")
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    with atomic_path(tmp_path / "model.bin") as temporary:
        temporary.write_bytes(b"whole")
    assert (tmp_path / "model.bin").read_bytes() == b"whole"


@pytest.mark.parametrize(("refusals", "written"), [(2, True), (1000, False)])
def test_a_file_that_another_program_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int, written: bool
) -> None:
    """There, nothing is renamed to a file that is open: by a virus scanner for a moment, by a spreadsheet for hours."""
    table = tmp_path / "scores.csv"
    table.write_text("old")
    replace, left = os.replace, [refusals]

    def rename(self: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError(errno.EACCES, "Access is denied", str(self))
        replace(self, target)

    monkeypatch.setattr(Path, "replace", rename)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    if written:
        with atomic_path(table) as temporary:
            temporary.write_text("new")
    else:
        with (
            pytest.raises(InputError, match=r"^Cannot write .*scores.csv: Access is denied\.$"),
            atomic_path(table) as temporary,
        ):
            temporary.write_text("new")
    assert table.read_text() == ("new" if written else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_a_folder_that_only_trying_shows_to_be_unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, os.access says yes to every folder; it must be known before the training, not after it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match="is not writable"):
        check_free(tmp_path / "new" / "model.safetensors", force=False)


def test_a_drive_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self, **_: False)
    with pytest.raises(InputError, match="there is no drive"):
        check_free(tmp_path / "model.safetensors", force=False)


def test_patterns_are_this_tools_to_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, neither shell expands them, and looking for a file of such a name fails with EINVAL."""
    plant(tmp_path, "1.png", "2.png", "3.txt")
    lstat = Path.lstat

    def look(self: Path) -> os.stat_result:
        if any(character in str(self) for character in '*?"<>|'):
            raise OSError(errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect")
        return lstat(self)

    monkeypatch.setattr(Path, "lstat", look)
    assert [source.name for source in find_sources([str(tmp_path / "*.png")])] == ["1.png", "2.png"]
    with pytest.raises(InputError, match="matches no images"):
        find_sources([str(tmp_path / "*.bmp")])


def test_one_file_written_in_two_cases_is_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "a.png", "A.PNG")
    monkeypatch.setattr(os.path, "normcase", str.lower)
    assert [source.name for source in find_sources([str(tmp_path / "a.png"), str(tmp_path / "A.PNG")])] == ["a.png"]


def test_a_run_is_taken_up_whatever_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "normcase", str.lower)
    with ResultWriter(tmp_path / "out", make_bundle(), save=()) as writer:
        writer.write(make_prediction(tmp_path / "Photos" / "a.png", 1.0))
    with ResultWriter(tmp_path / "out", make_bundle(), save=(), resume=True) as writer:
        assert writer.is_done(Source(tmp_path / "photos" / "A.PNG", "A.PNG"))
        assert not writer.is_done(Source(tmp_path / "photos" / "b.png", "b.png"))
    assert (tmp_path / "out" / "scores.csv").read_text("utf-8").splitlines()[1].startswith(f"{tmp_path}/Photos/a.png,")


def test_commands_are_quoted_as_both_shells_there_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single quotes are letters in cmd; where a path ends in a backslash, it must not escape the quote."""
    words = ["cfa", "fit", "C:\\my parts\\", "it's"]
    assert command_line(words[:2]) == "cfa fit"
    monkeypatch.setattr("cfa_cli.text.os", SimpleNamespace(name="nt"))
    assert command_line(words) == 'cfa fit "C:\\my parts\\\\" it\'s'


def test_network_drives_that_number_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All folders there have the number 0: none of them is taken for one that was visited."""
    plant(tmp_path, "1.png", "one/2.png", "one/two/3.png")
    status = Path.stat

    def unnumbered(self: Path, **options: Any) -> os.stat_result:
        values = list(status(self, **options))
        values[1] = 0
        return os.stat_result(values)

    monkeypatch.setattr(Path, "stat", unnumbered)
    assert found(tmp_path) == ["1.png", "one/2.png", "one/two/3.png"]


def test_hidden_folders_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, an attribute hides them; each drive has one that not even an administrator may list."""
    plant(tmp_path, "1.png", "System Volume Information/2.png")
    lstat = Path.lstat

    def look(self: Path) -> Any:
        hidden = stat.FILE_ATTRIBUTE_HIDDEN if self.name.startswith("System") else 0
        return SimpleNamespace(st_file_attributes=hidden | stat.FILE_ATTRIBUTE_DIRECTORY, st_mode=lstat(self).st_mode)

    monkeypatch.setattr(Path, "lstat", look)
    assert found(tmp_path) == ["1.png"]


def test_junctions_are_followed_as_links_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since Python 3.12, os.walk enters none; here, links that do not say that they are some stand for them."""
    outside = plant(tmp_path / "outside", "far.png")
    root = plant(tmp_path / "root", "1.png")
    (root / "junction").symlink_to(outside)
    monkeypatch.setattr(Path, "is_symlink", lambda self: False)
    monkeypatch.setattr(os.path, "isjunction", lambda path: Path(path).name == "junction", raising=False)
    assert found(root) == ["1.png", "junction/far.png"]
