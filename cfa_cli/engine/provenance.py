"""Where a model comes from: the versions, the day, and a digest of the images."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from cfa_cli import __version__
from cfa_cli.records import Provenance


def record_provenance(folder: Path | None, paths: Sequence[Path], seed: int, found: int | None) -> Provenance:
    """Record what a model was made with, from the images at `paths` (below `folder`, if they come from one).

    found: of how many images they are a sample; None if they are all.
    """
    return Provenance(
        cfa=__version__,
        torch=torch.__version__,
        timm=version("timm"),
        python=platform.python_version(),
        date=today(),
        images=len(paths),
        images_sha256=list_sha256(folder, paths),
        seed=seed,
        found=found,
    )


def list_sha256(folder: Path | None, paths: Sequence[Path]) -> str:
    """The SHA-256 of a list of images: of each its path (below `folder`, if they come from one) and its size."""
    digest = hashlib.sha256()
    for path in paths:
        name = path_below(folder, path)
        size = path.stat().st_size if path.exists() else 0  # it was read, and may have been moved since
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def path_below(folder: Path | None, path: Path) -> str:
    """Return an image's path below `folder`, POSIX, or its name alone where images come from no one folder."""
    return (path.relative_to(folder) if folder is not None else Path(path.name)).as_posix()


def today() -> str:
    """The day in UTC alone, so that the same work gives the same bytes; SOURCE_DATE_EPOCH sets another one."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)
    return f"{now:%Y-%m-%d}"
