"""`cfa benchmark NAME --download`: the licence is shown and accepted before a byte is fetched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cfa_cli.errors import UsageError
from cfa_cli.text import command_line

if TYPE_CHECKING:
    from cfa_cli.cli.render import Terminal


def accept_licence(name: str, root: Path | None, yes: bool) -> bool:
    """Return whether a data set has to be fetched; if so, its licence was accepted, by `yes` or at the terminal.

    Raises UsageError for what is not offered, and where nobody accepts.
    """
    from cfa_cli.data.datasets import find_dataset
    from cfa_cli.data.known import KNOWN

    if name not in KNOWN:
        offered = ", ".join(each for each, known in KNOWN.items() if known.download)
        raise UsageError(f"--download goes with a public data set's name, not with {name}.", f"Offered: {offered}.")
    known = KNOWN[name]
    if find_dataset(name, root) is not None:
        return False
    if known.download is None:
        raise UsageError(
            f"{known.title} is not offered for download: no checksum of it is public.",
            f"Obtain it from {known.where} (licence: {known.licence}), and name its folder with --data-root.",
        )
    if yes:
        return True
    if not sys.stdin.isatty():
        command = command_line(["cfa", "benchmark", name, "--download", "--yes"])
        raise UsageError(
            f"The licence of {known.title} has to be accepted: {known.licence}.",
            f"Read it at {known.where}, and accept it with --yes: {command}",
        )
    typer.echo(f"{known.title}: {known.licence}. Terms: {known.where}", err=True)
    if not typer.confirm(f"Download it to {(root or Path()).absolute()} under these terms?", err=True):
        raise UsageError(f"{known.title} was not downloaded: its licence was not accepted.", f"See {known.where}")
    return True


def obtain(name: str, root: Path | None, terminal: Terminal) -> None:
    """Fetch and unpack a data set, its progress on the terminal."""
    from cfa_cli.data.obtain import download_dataset

    folder = download_dataset(name, root or Path(), terminal.note, terminal.progress)
    terminal.end()
    terminal.note(f"The data set is in {folder}.")
