"""What the terminal shows: progress and notes on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from cfa_cli.records import Progress
from cfa_cli.text import printable, shorten

JSON_VERSION = 1
NOTE_SECONDS = 10.0  # between lines of progress where stderr is no terminal


@dataclass
class _Work:
    """Something under way that has a bar of its own."""

    phase: str
    task: TaskID
    started: float
    done_before: int  # when it started
    line: str = ""  # where it is


class Terminal:
    """stderr during a command: progress bars, notes and warnings. A context manager.

    Where stderr is no terminal there are no bars but a line now and then. A note or warning is shown once.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._works: dict[str, _Work] = {}
        self._noted = time.monotonic()
        self._said: set[str] = set()

    def __enter__(self) -> Terminal:
        if not self._bars.disable:  # some versions of rich end even a disabled bar with an empty line
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for work in list(self._works) if kind is None else ():
            self.end(work)
        if not self._bars.disable:
            self._bars.stop()

    def progress(self, step: Progress, work: str = "") -> None:
        """Show one step of long work; `work` names it where several go on at once."""
        if work not in self._works or step.phase != self._works[work].phase:
            self._begin(step, work)
        now, current = time.monotonic(), self._works[work]
        elapsed = now - current.started
        parts = [f"epoch {step.epoch}/{step.epochs}" if step.epoch else ""]
        parts += [f"loss {step.loss:.4g}" if step.loss is not None else ""]
        parts += [_rate(step.done / elapsed, step.unit) if elapsed > 0.5 else ""]
        detail = "  ".join(part for part in parts if part)
        self._bars.update(current.task, completed=step.done, total=step.total, detail=detail)
        eta = elapsed / max(1, step.done - current.done_before) * (step.total - step.done)
        current.line = f"{_title(step, work)}: {step.done}/{step.total}  {detail}  ETA {duration(eta)}"
        if self._bars.disable and now - self._noted > NOTE_SECONDS:
            self._noted = now
            overall = [self._works[""].line] if work and "" in self._works else []
            self._print("; ".join([*overall, current.line]))

    def end(self, work: str = "") -> None:
        """Take the bar of finished work away."""
        if current := self._works.pop(work, None):
            self._bars.remove_task(current.task)
            if self.verbose:
                self._print(f"{work + ', ' if work else ''}{current.phase}: {time.monotonic() - current.started:.1f} s")

    def note(self, text: str) -> None:
        """Show a one-line note, once."""
        if text not in self._said:
            self._said.add(text)
            self._print(text)

    def warn(self, text: str) -> None:
        """Show a warning once, also under --quiet: it concerns the results."""
        if text not in self._said:
            self._said.add(text)
            self.console.print(f"[bold yellow]Warning:[/] {_escape(text)}")

    def _print(self, text: str) -> None:
        if not self.quiet:
            self.console.print(shorten(printable(text)), markup=False)

    def _begin(self, step: Progress, work: str) -> None:
        self.end(work)
        title = _title(step, work)
        task = self._bars.add_task(title[:1].upper() + title[1:], total=step.total, detail="")
        self._works[work] = _Work(step.phase, task, time.monotonic(), step.done)


def _title(step: Progress, work: str) -> str:
    return f"{work}: {step.phase}" if work else step.phase


def _rate(each_second: float, unit: str) -> str:
    return f"{each_second:.0f} {unit}/s" if each_second >= 1 else ""


def print_json(document: dict[str, Any]) -> None:
    """Print the one JSON document of a command."""
    text = json.dumps({"version": JSON_VERSION, **document}, indent=2, ensure_ascii=False, default=str)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a console without these characters, a file name that is no text: escapes say the same
        text = json.dumps({"version": JSON_VERSION, **document}, indent=2, default=str)
    print(text)


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


def short_path(path: str | Path) -> str:
    """Return a path as a summary shows it: where it is longer than a line, its middle is left out."""
    return shorten(printable(str(path)), max(30, Console().width - 30))


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

    return escape(shorten(printable(text)))
