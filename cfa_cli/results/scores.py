"""scores.csv, written so that a run that is killed at any time can go on, and read back for the report.

Beside it stands run.jsonl: a line with the run's settings, then a line a row, with what the table has no column for.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfa_cli.atomic import atomic_path
from cfa_cli.errors import InputError
from cfa_cli.records import Label, Prediction

COLUMNS = ("path", "score", "normalized", "threshold", "label", "milliseconds", "error")
_FORMAT = 1  # of run.jsonl
_ELSEWHERE = "or choose another place with --out."


@dataclass(frozen=True)
class Row:
    """A row of scores.csv, and what run.jsonl adds to it."""

    path: Path  # as the user gave it; a relative one starts at the run's folder
    name: str  # of its files: POSIX, relative, without suffix
    score: float | None
    normalized: float | None
    threshold: float
    label: Label | None
    milliseconds: float | None
    error: str | None
    size: tuple[int, int] | None  # (height, width) in px, source size


class ScoreTable:
    """The table of a run. Rows go to the operating system one by one and whole: they outlive a kill of the process.

    `settings` tell runs apart: a run is taken up only with the same ones. `rows` are those of the run taken up.
    """

    def __init__(self, out: Path, settings: dict[str, Any], *, resume: bool) -> None:
        """Start the table in `out`, or take up the one that is there.

        Raises InputError where a run is there and must not be taken up, and where `out` cannot be written.
        """
        self._scores, self._journal = out / "scores.csv", out / "run.jsonl"
        self.rows: list[Row] = []
        self._end = 0  # bytes of scores.csv
        if resume and holds_run(out):
            self.rows, self._end = _take_up(out, settings)
        elif holds_run(out):
            raise InputError(
                f"{out} holds the results of an earlier run.",
                f"Go on from there with --resume, replace them with --force, {_ELSEWHERE}",
            )
        try:
            out.mkdir(parents=True, exist_ok=True)
            if self._end == 0:
                header = _csv_line(COLUMNS)
                run = {"format": _FORMAT, "folder": str(Path.cwd()), **settings}
                # First, so that wherever a table is, it is known what it belongs to.
                with atomic_path(self._journal) as temporary:
                    temporary.write_bytes(_json_line(run))
                with atomic_path(self._scores) as temporary:
                    temporary.write_bytes(header)
                self._end = len(header)
            self._files = [path.open("ab", buffering=0) for path in (self._journal, self._scores)]
        except OSError as error:
            raise _cannot_write(out, error) from error

    def append(self, prediction: Prediction, name: str) -> None:
        """Append a row; `name` is that of its files. Raises InputError where it cannot be written."""
        row = _csv_line(_fields(prediction))
        end = self._end + len(row)
        size = None if prediction.image is None else prediction.image.shape[:2]
        entry = {"path": str(prediction.source.path), "name": name, "size": size, "end": end}
        try:
            # run.jsonl first: of a line without its row nothing remains when the run is taken up.
            for file, line in zip(self._files, (_json_line(entry), row), strict=True):
                if file.write(line) != len(line):
                    raise OSError(None, "the disk is full")
        except OSError as error:
            raise _cannot_write(self._scores, error) from error
        self._end = end

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def holds_run(out: Path) -> bool:
    """Whether `out` has results of a run."""
    return (out / "scores.csv").exists() or (out / "run.jsonl").exists()


def read_run(out: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read a run back: its settings (`folder` it was started in, and those it was given) and its whole rows, in order.

    Raises InputError where `out` holds no run, a damaged one, or one whose scores.csv was changed since.
    """
    settings, rows, _ = _read(out)
    return settings, rows


def _read(out: Path) -> tuple[dict[str, Any], list[Row], int]:
    """Settings, rows, and the bytes of scores.csv that hold the whole rows."""
    scores = out / "scores.csv"
    try:
        # What follows the last line end is a line that was cut off.
        lines = [json.loads(line) for line in (out / "run.jsonl").read_bytes().split(b"\n")[:-1]]
        settings = lines[0]
        if settings["format"] != _FORMAT:
            raise InputError(
                f"{out} holds results of another version of cfa.", f"Start again with --force, {_ELSEWHERE}"
            )
        data = scores.read_bytes() if scores.exists() else b""
        entries = [entry for entry in lines[1:] if entry["end"] <= len(data)]
        end = entries[-1]["end"] if entries else len(_csv_line(COLUMNS))
        text = data[:end].decode("utf-8", "surrogateescape")
        table = list(csv.DictReader(io.StringIO(text, newline="")))
        if [fields["path"] for fields in table] != [_safe(entry["path"]) for entry in entries]:
            raise InputError(f"{scores} was changed after it was written.", f"Start again with --force, {_ELSEWHERE}")
        rows = [_row(entry, fields) for entry, fields in zip(entries, table, strict=True)]
        return settings, rows, end if data else 0
    except FileNotFoundError as error:
        raise InputError(
            f"{out} holds no results of cfa predict.", f"Start again with --force, {_ELSEWHERE}"
        ) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{out}/run.jsonl is damaged.", f"Start again with --force, {_ELSEWHERE}") from error


def _take_up(out: Path, settings: dict[str, Any]) -> tuple[list[Row], int]:
    """The rows that are whole; what was half written is cut off."""
    earlier, rows, end = _read(out)
    for key, value in settings.items():
        if earlier.get(key) != value:
            raise InputError(
                f"{out} was written with another {key}: {_brief(earlier.get(key))}, now {_brief(value)}.",
                f"Resume with the same {key}, replace the results with --force, {_ELSEWHERE}",
            )
    if end == 0:  # killed before the header was written
        return [], 0
    os.truncate(out / "scores.csv", end)
    lines = (out / "run.jsonl").read_bytes().split(b"\n")[: len(rows) + 1]
    with atomic_path(out / "run.jsonl") as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in lines))
    return [_absolute(row, Path(earlier["folder"])) for row in rows], end


def _absolute(row: Row, folder: Path) -> Row:
    return Row(**{**vars(row), "path": folder / row.path})


def _brief(value: Any) -> str:
    return ",".join(value) or "none" if isinstance(value, list) else str(value)[:12]


def _row(entry: dict[str, Any], fields: dict[str, str]) -> Row:
    def number(text: str) -> float | None:
        return float(text) if text else None

    label: Label | None = "anomalous" if fields["label"] == "anomalous" else "good" if fields["label"] else None
    return Row(
        path=Path(entry["path"]),
        name=entry["name"],
        score=number(fields["score"]),
        normalized=number(fields["normalized"]),
        threshold=float(fields["threshold"]),
        label=label,
        milliseconds=number(fields["milliseconds"]),
        error=fields["error"] or None,
        size=tuple(entry["size"]) if entry["size"] else None,
    )


def _fields(prediction: Prediction) -> list[str]:
    """The row's text. 9 significant digits give every float32 back."""

    def text(value: float | None, form: str = ".9g") -> str:
        return "" if value is None else format(value, form)

    return [
        _safe(str(prediction.source.path)),
        text(prediction.score),
        text(prediction.normalized),
        text(prediction.threshold),
        prediction.label or "",
        text(prediction.milliseconds, ".3f"),
        _safe(prediction.error or ""),
    ]


def _safe(text: str) -> str:
    """Keep spreadsheets from running a file name as a formula. `./` changes no relative path's meaning."""
    return f"./{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _csv_line(fields: Iterable[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue().encode("utf-8", "surrogateescape")


def _json_line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"Cannot write {path}: {error.strerror or error}.", "Choose another place with --out.")
