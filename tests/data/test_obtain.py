"""`cfa benchmark NAME --download` against a loopback server, with its faults: what is there is whole, or not there."""

from __future__ import annotations

import hashlib
import io
import random
import sys
from dataclasses import replace

import pytest

from cfa_cli import download
from cfa_cli.data.datasets import open_dataset
from cfa_cli.data.known import KNOWN, Download
from cfa_cli.data.obtain import download_dataset
from cfa_cli.errors import InputError
from tests.conftest import assert_refused
from tests.data.test_archives import make_tar
from tests.weights.hub_server import hub_server

NAMES = ["train/good/0.png", "train/good/1.png", "test/good/0.png", "test/dent/0.png", "ground_truth/dent/0_mask.png"]
FILES = {f"bolt/{name}": random.Random(name).randbytes(64_000) for name in NAMES}
FOLDER = "mvtec_anomaly_detection"


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return make_tar(tmp_path_factory.mktemp("archive") / "a.tar.xz", "w:xz", FILES).read_bytes()


@pytest.fixture
def server(content, monkeypatch):
    """MVTec AD, of one small category, on this computer."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with hub_server(content) as running:
        offer(monkeypatch, running, content)
        yield running


def offer(monkeypatch, server, content):
    found = Download(f"{server.endpoint}/cdn/a.tar.xz", hashlib.sha256(content).hexdigest(), "a.tar.xz")
    known = replace(KNOWN["mvtec"], names=("bolt",), counts={"bolt": (2, 1, 1)}, download=found)
    monkeypatch.setitem(KNOWN, "mvtec", known)


def left(root):
    """What lies in the data root, but for lock files."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


def test_it_is_fetched_checked_unpacked_and_read(server, tmp_path):
    notes, steps = [], []
    folder = download_dataset("mvtec", tmp_path / "new", notes.append, steps.append)
    assert folder == tmp_path / "new" / FOLDER
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")} == FILES
    assert left(tmp_path / "new") == [FOLDER]  # the archive is gone
    assert open_dataset("mvtec", tmp_path / "new").categories[0].has_masks
    assert notes[0].startswith("Downloading MVTec AD from 127.0.0.1")
    assert "unpacking" in {step.phase for step in steps}
    asked = len(server.requests)
    assert download_dataset("mvtec", tmp_path / "new") == folder
    assert len(server.requests) == asked


def test_a_cut_download_is_gone_on_with_by_the_next_run(server, tmp_path, monkeypatch, content):
    monkeypatch.setattr(download, "TRIES", 1)
    server.cuts = [1000]
    with pytest.raises(InputError, match="cut 1 times; run it again to go on"):
        download_dataset("mvtec", tmp_path)
    assert left(tmp_path) == [".a.tar.xz.partial"]
    assert (tmp_path / ".a.tar.xz.partial").read_bytes() == content[:1000]
    download_dataset("mvtec", tmp_path)
    assert server.cdn_ranges[-1] == "bytes=1000-"
    assert left(tmp_path) == [FOLDER]


def test_a_wrong_checksum_is_deleted(server, tmp_path, content):
    server.content = content[:-1] + b"\x00"
    with pytest.raises(InputError, match="does not have the expected checksum, and was deleted"):
        download_dataset("mvtec", tmp_path)
    assert left(tmp_path) == []


def test_a_server_that_refuses_or_is_silent(server, tmp_path, monkeypatch):
    server.status = 404
    with pytest.raises(InputError, match=r"has no a\.tar\.xz \(HTTP 404\)") as caught:
        download_dataset("mvtec", tmp_path)
    assert KNOWN["mvtec"].where in caught.value.hint
    assert "--data-root" in caught.value.hint
    server.status = None
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.cuts, server.silent_after_cut = [500, 0], True
    with pytest.raises(InputError, match="stopped sending MVTec AD"):
        download_dataset("mvtec", tmp_path)
    server.silent = True
    with pytest.raises(InputError, match=r"No answer from .* within 0\.3 s"):
        download_dataset("mvtec", tmp_path)


def test_a_hostile_archive_leaves_nothing(server, tmp_path, monkeypatch):
    hostile = make_tar(tmp_path / "hostile.tar", "w", {**FILES, "../../evil.png": b"evil"}).read_bytes()
    server.content = hostile
    offer(monkeypatch, server, hostile)
    root = tmp_path / "deep/er/root"
    with pytest.raises(InputError, match="leaves its folder"):
        download_dataset("mvtec", root)
    assert left(root) == [".a.tar.xz.partial"]
    assert not list(tmp_path.rglob("evil.png"))


def test_an_archive_that_is_there_is_used_and_kept(server, tmp_path, content):
    (tmp_path / "a.tar.xz").write_bytes(content)
    download_dataset("mvtec", tmp_path)
    assert (left(tmp_path), server.requests) == (["a.tar.xz", FOLDER], [])


def test_what_is_in_the_way_and_a_full_disk(server, tmp_path, monkeypatch):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "mine.txt").touch()
    with pytest.raises(InputError, match="holds something else than MVTec AD"):
        download_dataset("mvtec", tmp_path)
    (tmp_path / FOLDER / "mine.txt").unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000}))
    with pytest.raises(InputError, match=r"while it is unpacked; .* has 0\.0 MB left"):
        download_dataset("mvtec", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write to"):
        download_dataset("mvtec", tmp_path / "file")


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("answer", ["n", "y", "--yes"])
def test_the_licence_is_shown_and_accepted_first(server, cfa, tmp_path, monkeypatch, answer):
    command = ["benchmark", "mvtec", "--download", "--weights", "nowhere.pth"]
    assert_refused(cfa(*command), 2, "The licence of MVTec AD has to be accepted: CC BY-NC-SA 4.0", "--yes")
    assert server.requests == []
    if answer == "--yes":
        command.append(answer)
    else:
        monkeypatch.setattr(sys, "stdin", Keyboard(f"{answer}\n"))
    done = cfa(*command)
    assert ("CC BY-NC-SA 4.0" in done.err) is (answer != "--yes")
    if answer == "n":
        assert (done.code, "MVTec AD was not downloaded" in done.err, server.requests) == (2, True, [])
    else:  # the next mistake is told: the data set was read
        assert (done.code, "nowhere.pth" in done.err, (tmp_path / FOLDER).is_dir()) == (5, True, True)
        assert f"The data set is in {FOLDER}" in done.err


def test_what_is_not_offered(cfa):
    assert_refused(cfa("benchmark", "mpdd", "--download", "--yes"), 2, "MPDD is not offered", KNOWN["mpdd"].where)
    assert_refused(cfa("benchmark", "mine", "--download"), 2, "not with mine", "Offered: mvtec, mvtec-loco, visa, btad")
