"""A table of text, before it is markdown, a terminal's or a page's."""

from __future__ import annotations

from dataclasses import dataclass

EMPTY = "-"  # in place of a figure that is not defined


@dataclass(frozen=True)
class Table:
    """Text in rows and columns."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    has_average: bool = True  # in its last row

    def markdown(self) -> list[str]:
        """Return its lines in markdown, the title and the notes included."""
        lines = [f"## {self.title}", "", _line(self.header), "|---" + "|---:" * (len(self.header) - 1) + "|"]
        return [*lines, *map(_line, self.rows), "", *(f"{note}\n" for note in self.notes)]


def figure_text(value: float | None) -> str:
    """Write a metric, 0..1."""
    return EMPTY if value is None else f"{value:.3f}"


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
