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

from cfa_cli.atomic import atomic_path
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


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_kill_never_leaves_a_half_file_under_the_final_name(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom cfa_cli.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); print('writing', flush=True); sys.stdin.read()"
    )
    final = tmp_path / "x.txt"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(final)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert not final.exists()
