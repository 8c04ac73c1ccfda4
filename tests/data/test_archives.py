"""Archives of strangers: what is right is unpacked byte for byte, what is hostile writes nothing outside the folder."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from cfa_cli.data import archives
from cfa_cli.data.archives import unpack
from cfa_cli.errors import InputError

FILES = {"bolt/train/good/000.png": b"one", "bolt/readme.txt": b"", "bolt/test/a b/ü.png": bytes(range(256)) * 9000}


def make_tar(path: Path, mode: str = "w", files: dict[str, bytes] = FILES, *others: tarfile.TarInfo) -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in others:
            tar.addfile(info)
    return path


def make_zip(path: Path, files: dict[str, bytes] = FILES, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(info, content)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["tar", "tar.xz", "tar.gz", "zip"])
def test_files_come_out_as_they_went_in(tmp_path, kind):
    archive, steps = tmp_path / f"a.{kind}", []
    if kind == "zip":
        make_zip(archive)
    else:
        make_tar(archive, f"w:{kind[4:]}", {f"./{name}": content for name, content in FILES.items()})
    unpack(archive, tmp_path / "out", steps.append)
    assert contents(tmp_path / "out") == FILES
    assert {step.phase for step in steps} == {"unpacking"}


OUTSIDE = [
    "../evil.png",
    "a/../../evil.png",
    "/tmp/cfa-evil.png",
    "..\\evil.png",
    "C:\\evil.png",
    "\x1b[2J.png",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_path_leaves_the_folder(tmp_path, name, kind):
    make = make_tar if kind == "tar" else make_zip
    archive = make(tmp_path / "a", files={name: b"evil"})
    with pytest.raises(InputError, match="holds a path that leaves its folder"):
        unpack(archive, tmp_path / "in/out")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]
    assert not Path("/tmp/cfa-evil.png").exists()


@pytest.mark.parametrize(
    "member",
    [
        special("link", tarfile.SYMTYPE, "/etc"),
        special("link", tarfile.SYMTYPE, "bolt"),
        special("link", tarfile.LNKTYPE, "bolt/readme.txt"),
        special("device", tarfile.CHRTYPE),
        special("device", tarfile.BLKTYPE),
        special("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda member: f"{member.type.decode()} {member.linkname}",
)
def test_no_links_and_no_devices(tmp_path, member):
    archive = make_tar(tmp_path / "a.tar", "w", FILES, member)
    with pytest.raises(InputError, match="holds a link or a device"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out" / member.name).exists()
    archive = make_zip(tmp_path / "a.zip", {"link": b"/etc"}, stat.S_IFLNK | 0o777)
    with pytest.raises(InputError, match="holds a link or a device"):
        unpack(archive, tmp_path / "out")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ALLOWANCE", 1_000_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed, packed.open("b", "w") as file:
        for _ in range(9):
            file.write(bytes(1_000_000))
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as tar:
        info = tarfile.TarInfo("b")
        info.size = 9_000_000
        tar.addfile(info, open("/dev/zero", "rb"))  # noqa: SIM115, PTH123
    for name in ("a.zip", "a.tar.xz"):
        assert (tmp_path / name).stat().st_size < 20_000
        with pytest.raises(InputError, match=rf"{name} unpacks to more than 1 MB"):
            unpack(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_damaged_or_no_archive(tmp_path):
    whole = make_tar(tmp_path / "whole.tar.xz", "w:xz").read_bytes()
    packed = make_zip(tmp_path / "whole.zip").read_bytes()
    flipped = packed.replace(b"one", b"two") if b"one" in packed else packed[:60] + b"\xff\xff" + packed[62:]
    for number, content in enumerate([b"", b"text", whole[: len(whole) // 2], packed[:-30], flipped]):
        archive = tmp_path / f"{number}.bin"
        archive.write_bytes(content)
        with pytest.raises(InputError, match=r"\d\.bin is damaged, or neither a tar nor a zip file"):
            unpack(archive, tmp_path / f"out{number}")


def test_a_name_twice_does_not_replace_a_file(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for content in (b"first", b"second"):
            info = tarfile.TarInfo("x.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(InputError, match="holds a name twice"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert (tmp_path / "out/x.png").read_bytes() == b"first"
