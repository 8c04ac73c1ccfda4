"""A file is either whole or not there."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cfa_cli.atomic import atomic_path, atomic_paths, write_files
from cfa_cli.errors import InputError


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As on a disk with `size` bytes left: the system refuses to write further."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_file_appears_when_it_is_whole(tmp_path):
    final = tmp_path / "new" / "folders" / "table.csv"
    with atomic_path(final) as temporary:
        temporary.write_text("half")
        assert not final.exists()
        assert temporary.parent == final.parent  # else the renaming would be a copy
        assert temporary.suffix == ".csv"
        temporary.write_text("whole")
    assert final.read_text() == "whole"
    assert [path.name for path in final.parent.iterdir()] == ["table.csv"]


def test_others_may_read_it_as_the_umask_says(tmp_path):
    code = (
        "import os, sys; os.umask(0o027)\n"
        "from pathlib import Path\nfrom cfa_cli.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary: temporary.write_text('x')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.txt")], check=True)
    assert stat.S_IMODE((tmp_path / "x.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("no")])
def test_an_interruption_leaves_what_was_there(tmp_path, error):
    final = tmp_path / "model.bin"
    final.write_text("old")
    with pytest.raises(error if isinstance(error, type) else type(error)), atomic_path(final) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    final = tmp_path / "model.bin"
    final.write_bytes(b"old")
    with largest_file(1000), pytest.raises(InputError, match=r"^Cannot write .*model.bin: .+\.$") as caught:  # noqa: SIM117
        with atomic_path(final) as temporary:
            temporary.write_bytes(bytes(5000))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert "--out" in str(caught.value.hint)
    assert final.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [final]


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "maps").write_text("a file")
    with pytest.raises(InputError, match="Cannot write"), atomic_path(tmp_path / "maps" / "a.png"):
        pass


WRITER = (
    "import sys\nfrom pathlib import Path\nfrom cfa_cli.atomic import atomic_path, scratch_folder\n"
    "with scratch_folder(Path(sys.argv[1])), atomic_path(Path(sys.argv[1])) as temporary:\n"
    "    temporary.write_text('half'); print('writing', flush=True); sys.stdin.read()"
)


@contextmanager
def writer_of(final) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, in the middle of writing `final`."""
    command = [sys.executable, "-c", WRITER, str(final)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        yield process


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    final = tmp_path / "x.txt"
    with writer_of(final) as process:
        process.send_signal(signal.SIGKILL)
    left = set(tmp_path.iterdir())
    assert final not in left  # no half file under the final name
    assert len(left) == 2  # a file and a folder
    mine = {tmp_path / name for name in (".x-abcdefgh.txt", ".x-cfa-notes.txt", "x-cfa-00000000-1-abcdefgh.txt")}
    elsewhere = tmp_path / ".x-cfa-00000000-1-abcdefgh.txt"  # another computer's
    abandoned = tmp_path / ".x-cfa-00000000-2-abcdefgh.txt"
    for path in (*mine, elsewhere, abandoned):
        path.write_text("mine")
    os.utime(abandoned, (1e9, 1e9))
    with writer_of(tmp_path / "y.txt") as process:
        live = set(tmp_path.iterdir()) - left - mine - {elsewhere, abandoned}
        assert len(live) == 2
        with atomic_path(final) as temporary:
            temporary.write_text("whole")
        assert set(tmp_path.iterdir()) == {final, elsewhere} | mine | live
        assert process.stdin is not None
        process.stdin.close()
    assert set(tmp_path.iterdir()) == {final, elsewhere, tmp_path / "y.txt"} | mine


def test_a_file_open_for_reading_alone_is_not_flushed(tmp_path, monkeypatch):
    """As on Windows, where that fails."""
    fcntl = pytest.importorskip("fcntl")
    flushed = []

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_path(tmp_path / "x.txt") as temporary:
        temporary.write_text("whole")
    assert flushed
    assert (tmp_path / "x.txt").read_text() == "whole"


def refuse_to_replace(monkeypatch, open_elsewhere):
    """As on Windows while another program has the file open."""
    replace = os.replace

    def refuse(source, target, **options):
        if str(target) == str(open_elsewhere):
            raise PermissionError(errno.EACCES, "Access is denied", str(source), None, str(target))
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def test_a_table_open_in_a_spreadsheet_is_one_sentence(tmp_path, monkeypatch):
    final = tmp_path / "scores.csv"
    final.write_text("old")
    refuse_to_replace(monkeypatch, final)
    with pytest.raises(InputError, match=r"^Cannot replace .*scores.csv: another program has it open") as caught:  # noqa: SIM117
        with atomic_path(final) as temporary:
            temporary.write_text("new")
    assert "Close it" in str(caught.value.hint)
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("there", [True, False])
def test_files_that_belong_together_are_all_replaced_or_none_is(tmp_path, monkeypatch, there):
    finals = [tmp_path / "m.bin", tmp_path / "m.xml"]
    if there:
        for final in finals:
            final.write_text("old")
    with monkeypatch.context() as patch:
        refuse_to_replace(patch, finals[1])
        with pytest.raises(InputError, match=r"m\.bin and .*m\.xml"), atomic_paths(*finals) as temporaries:  # noqa: PT012
            for temporary in temporaries:
                temporary.write_text("new")
    assert {path: path.read_text() for path in tmp_path.iterdir()} == (dict.fromkeys(finals, "old") if there else {})
    with atomic_paths(*finals) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
    assert {path: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(finals, "new")


def test_files_of_one_result_are_all_written_or_none_is_there(tmp_path, monkeypatch):
    finals = [tmp_path / "a" / "b" / "x.png", tmp_path / "c" / "x.tiff", tmp_path / "x.jpg"]
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (flushed.append(descriptor), fsync(descriptor)))
    write_files((final, final.suffix.encode() * 500) for final in finals)
    assert len(flushed) == 3
    assert [final.read_bytes()[:5] for final in finals] == [b".png.", b".tiff", b".jpg."]
    (tmp_path / "umask").touch()
    assert {final.stat().st_mode for final in finals} == {(tmp_path / "umask").stat().st_mode}

    def interrupted():
        yield finals[0], b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_files(interrupted())
    with largest_file(1000), pytest.raises(InputError, match=r"^Cannot write .*x\.tiff: .+\.$"):
        write_files((final, bytes(5000 if final.suffix == ".tiff" else 5)) for final in finals)
    refuse_to_replace(monkeypatch, finals[2])
    with pytest.raises(InputError, match=r"^Cannot replace .*x\.jpg: another program"):
        write_files((final, b"new") for final in finals)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["umask"]
