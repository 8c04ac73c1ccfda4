"""What the terminal shows: progress and notes on stderr, results on stdout."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from cfa_cli.records import Progress
from cfa_cli.text import printable

JSON_VERSION = 1
NOTE_SECONDS = 10.0  # between lines of progress where stderr is no terminal


class Terminal:
    """stderr during a command: a progress bar, notes and warnings. A context manager."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._phase = ""
        self._started = self._noted = 0.0

    def __enter__(self) -> Terminal:
        if not self._bar.disable:  # some versions of rich end even a disabled bar with an empty line
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end_phase()
        if not self._bar.disable:
            self._bar.stop()

    def progress(self, step: Progress) -> None:
        """Show one step of long work."""
        if step.phase != self._phase:
            self._begin_phase(step)
        elapsed = time.monotonic() - self._started
        rate = f"{step.done / elapsed:.0f} {step.unit}/s" if elapsed > 0.5 else ""
        parts = [f"epoch {step.epoch}/{step.epochs}" if step.epoch else "", rate]
        if step.loss is not None:
            parts.insert(1, f"loss {step.loss:.4g}")
        detail = "  ".join(part for part in parts if part)
        if self._task is not None:
            self._bar.update(self._task, completed=step.done, total=step.total, detail=detail)
        if self._bar.disable and not self.quiet and time.monotonic() - self._noted > NOTE_SECONDS:
            self._noted = time.monotonic()
            self.console.print(f"{step.phase}: {step.done}/{step.total}  {detail}", markup=False)

    def note(self, text: str) -> None:
        """Show a one-line note."""
        if not self.quiet:
            self.console.print(printable(text), markup=False)

    def warn(self, text: str) -> None:
        """Show a warning, also under --quiet: it concerns the results."""
        self.console.print(f"[bold yellow]Warning:[/] {_escape(text)}")

    def _begin_phase(self, step: Progress) -> None:
        self._end_phase()
        self._phase, self._started, self._noted = step.phase, time.monotonic(), time.monotonic()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(step.phase.capitalize(), total=step.total, detail="")

    def _end_phase(self) -> None:
        if self.verbose and self._phase:
            self.note(f"{self._phase}: {time.monotonic() - self._started:.1f} s")
        self._phase = ""


def print_json(document: dict[str, Any]) -> None:
    """Print the one JSON document of a command."""
    print(json.dumps({"version": JSON_VERSION, **document}, indent=2, ensure_ascii=False, default=str))


def print_facts(title: str, facts: Iterable[tuple[str, str]]) -> None:
    """Print a table of names and values on stdout."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, _escape(value))
    Console(highlight=False).print(table)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[str] = ()) -> None:
    """Print a table with a header on stdout; `numeric` columns are aligned right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_escape(cell) for cell in row))
    Console(highlight=False).print(table)


def duration(seconds: float) -> str:
    """Write a duration for people: 0.8 s, 42 s, 3 min 5 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def file_size(size: int) -> str:
    """Write a number of bytes for people."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text))
