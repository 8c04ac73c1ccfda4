"""scores.csv and regions.csv, written so that a run that is killed at any time can go on, and read back for the report.

Beside it stands run.jsonl: a line with the run's settings, then a line a row, with what the table has no column for.
Both only grow while a run is at work. An image that failed and was tried again has two rows until the run ends: then,
or when the run is next taken up, the later row takes the place of the failed one.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

from cfa_cli.atomic import atomic_path
from cfa_cli.errors import InputError
from cfa_cli.records import Prediction
from cfa_cli.results.folder import ELSEWHERE, is_there, writing
from cfa_cli.results.names import is_safe
from cfa_cli.results.rows import COLUMNS, EARLIER_COLUMNS, Row, row_fields, row_from
from cfa_cli.results.text import (
    REGION_COLUMNS,
    csv_line,
    json_line,
    misfits_to_json,
    region_lines,
    regions_to_json,
    safe,
)

_FORMAT = 1  # of run.jsonl
_HEADER = csv_line(COLUMNS)


class ScoreTable:
    """The table of a run. Rows go to the operating system one by one and whole: they outlive a kill of the process."""

    def __init__(self, out: Path, save: Sequence[str], models: Sequence[str], ignore: str, *, resume: bool) -> None:
        """Start the table in the folder `out`, or take up the one that is there.

        A run is taken up only with the same `save`, `ignore` (a digest; empty: the model says) and model; `models` are
        the digests that mean the present one, the first of which is written. Raises InputError where a run is there and
        must not be taken up, and where `out` cannot be written.
        """
        self._out = out
        self._paths = [out / "run.jsonl", out / "regions.csv", out / "scores.csv"]
        self.rows: list[Row] = []  # of the run taken up; without those that failed, which are to be tried again
        self._failed: set[str] = set()
        self._superseded = False  # whether a failed image has a later row
        self._folder = Path.cwd()  # where relative paths start
        self._end = 0  # bytes of scores.csv
        if holds_run(out):
            if not resume:
                raise InputError(
                    f"{out} holds the results of an earlier run.",
                    f"Go on from there with --resume, replace them with --force, {ELSEWHERE}",
                )
            self._take_up(list(save), models, ignore)
        if self._end == 0:
            settings = {"format": _FORMAT, "folder": str(self._folder), "save": list(save), "model": models[0]}
            settings |= {"ignore": ignore} if ignore else {}
            _write(out, _Run(settings, [], []))
            self._end = len(_HEADER)
        self._files: list[io.FileIO] = []
        for path in self._paths:
            with writing(path):
                self._files.append(path.open("ab", buffering=0))

    def append(self, prediction: Prediction, name: str) -> None:
        """Append a row; `name` is that of its files. Raises InputError where it cannot be written."""
        path = self._path(prediction.source.path)
        line = csv_line(row_fields(prediction, path))
        size = None if prediction.image is None else prediction.image.shape[:2]
        if size is None and prediction.statistics is not None:
            size = prediction.statistics.height, prediction.statistics.width
        end, failed = self._end + len(line), prediction.error is not None
        state = prediction.source.state
        regions, listed = regions_to_json(prediction.regions), b"".join(region_lines(path, prediction.regions))
        entry: dict[str, Any] = {"path": path, "name": name, "size": size, "state": state, "failed": failed}
        entry |= {"regions": regions, "misfits": misfits_to_json(prediction.misfits), "end": end}
        # scores.csv last: of what belongs to no row there nothing remains when the run is taken up.
        for file, text, written in zip(self._files, (json_line(entry), listed, line), self._paths, strict=True):
            with writing(written):
                if file.write(text) != len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end = end
        identity = absolute(self._folder / path)
        self._superseded |= identity in self._failed
        if failed:
            self._failed.add(identity)

    def close(self) -> None:
        """Close the files, and give each image that was tried again one row, in its first's place."""
        for file in self._files:
            file.close()
        if self._superseded:
            _write(self._out, _read(self._out))

    def _path(self, path: Path) -> str:
        """As it was given; where the run was started in another folder, so that it still starts there."""
        if path.is_absolute() or self._folder == Path.cwd():
            return str(path)
        try:
            return os.path.relpath(path, self._folder)
        except ValueError:  # another drive of Windows
            return os.path.abspath(path)  # noqa: PTH100  links are not followed

    def _take_up(self, save: list[str], models: Sequence[str], ignore: str) -> None:
        """Keep the rows that are whole; what was half written is cut off."""
        run = _read(self._out)
        earlier = run.settings
        kinds, own = ",".join(earlier["save"]) or "none", "the model's"
        for key, same, before, now in (
            ("save", sorted(earlier["save"]) == sorted(save), kinds, ",".join(save) or "none"),
            ("model", earlier["model"] in models, earlier["model"][:12], models[0][:12]),
            ("ignore", (given := earlier.get("ignore", "")) == ignore, given[:12] or own, ignore[:12] or own),
        ):
            if not same:
                raise InputError(
                    f"{self._out} was written with another {key}: {before}, now {now}.",
                    f"Resume with the same {key}, replace the results with --force, {ELSEWHERE}",
                )
        run = _write(self._out, run)
        self._end = len(_HEADER) + sum(map(len, run.lines))
        self._folder = Path(earlier["folder"])
        rows = [replace(row, path=self._folder / row.path) for row in run.rows]
        self.rows = [row for row in rows if row.error is None]
        self._failed = {absolute(row.path) for row in rows if row.error is not None}


def holds_run(out: Path) -> bool:
    """Whether `out` has results of a run. Raises InputError where something else has their names."""
    return is_there(out / "scores.csv") | is_there(out / "run.jsonl")


def read_run(out: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read a run back: its settings (`folder` it was started in, `save`, `model`) and its whole rows, in order.

    Raises InputError where `out` holds no run, a damaged one, or one whose scores.csv was changed since.
    """
    run = _read(out)
    return run.settings, run.rows


@dataclass(frozen=True)
class _Run:
    settings: dict[str, Any]
    rows: list[Row]
    lines: list[bytes]  # of scores.csv, one a row


def _read(out: Path) -> _Run:
    if not is_there(out / "run.jsonl"):
        raise InputError(f"{out} holds no results of cfa predict.", f"Start again with --force, {ELSEWHERE}")
    try:
        journal = (out / "run.jsonl").read_bytes()
        data = (out / "scores.csv").read_bytes() if is_there(out / "scores.csv") else b""
    except OSError as error:
        raise InputError(f"Cannot read the results in {out}: {error.strerror}.", "Check its permissions.") from error
    try:
        # What follows the last line end is a line that was cut off.
        settings, *entries = [json.loads(line) for line in journal.split(b"\n")[:-1]]
        if settings["format"] != _FORMAT:
            raise InputError(
                f"{out} holds results of another version of cfa.", f"Start again with --force, {ELSEWHERE}"
            )
        _check_settings(settings)
        for entry in entries:
            _check_entry(entry)
        found = _table(settings, entries, data)
        if found is None:
            raise InputError(
                f"{out / 'scores.csv'} was changed after it was written.", f"Start again with --force, {ELSEWHERE}"
            )
        return _Run(settings, *found)
    except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        raise InputError(f"{out / 'run.jsonl'} is damaged.", f"Start again with --force, {ELSEWHERE}") from error


def _check_settings(settings: dict[str, Any]) -> None:
    texts = [settings["folder"], settings["model"], settings.get("ignore", ""), *settings["save"]]
    if not isinstance(settings["save"], list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("settings")


def _check_entry(entry: dict[str, Any]) -> None:
    """Raise ValueError or TypeError unless the entry is one that `ScoreTable` may have written."""
    size, state = entry["size"], entry.get("state")
    if not is_safe(entry["name"]) or not isinstance(entry["path"], str) or type(entry["end"]) is not int:
        raise ValueError("entry")
    if size is not None and ([type(side) for side in size] != [int, int] or min(size) < 1):
        raise ValueError("size")
    if state is not None and [type(number) for number in state] != [int, int]:
        raise ValueError("state")
    if not all(type(what) is str and type(figures) in (str, NoneType) for what, figures in entry.get("misfits", [])):
        raise ValueError("misfits")


def _table(
    settings: dict[str, Any], entries: list[dict[str, Any]], data: bytes
) -> tuple[list[Row], list[bytes]] | None:
    """The whole rows and their lines; None where they are not those of `entries`."""
    whole = [entry for entry in entries if entry["end"] <= len(data)]
    end = whole[-1]["end"] if whole else len(_HEADER)
    keys = [(absolute(Path(settings["folder"], entry["path"])), entry.get("failed", False)) for entry in entries]
    # A kill between the two renames of `_write` leaves a scores.csv that is in input order already.
    ordered = [entries[index] for index in _input_order(keys)]
    for expected, text in ((ordered, data), (whole, data[:end])):
        table = _parse(text)
        if [fields["path"] for fields in table] == [safe(entry["path"]) for entry in expected]:
            rows = [row_from(entry, fields) for entry, fields in zip(expected, table, strict=True)]
            return rows, [csv_line(fields.get(column, "") for column in COLUMNS) for fields in table]
    return None


def _parse(data: bytes) -> list[dict[str, str]]:
    """The rows of a table; none where its header or last line is not whole."""
    if not data.startswith((_HEADER, *map(csv_line, EARLIER_COLUMNS))) or not data.endswith(b"\n"):
        return []
    text = data.decode("utf-8", "surrogateescape")
    before = csv.field_size_limit(len(text) + 1)  # its own limit is 131,072 characters a field
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), restval=""))
    finally:
        csv.field_size_limit(before)


def _write(out: Path, run: _Run) -> _Run:
    """Write a run's tables and journal, with one row for each image that was tried again; return it as it is now."""
    folder = run.settings["folder"]
    order = _input_order([(absolute(Path(folder, row.path)), row.error is not None) for row in run.rows])
    run = _Run(run.settings, [run.rows[index] for index in order], [run.lines[index] for index in order])
    entries, end = [run.settings], len(_HEADER)
    for row, line in zip(run.rows, run.lines, strict=True):
        end += len(line)
        failed = row.error is not None
        entry: dict[str, Any] = {
            "path": str(row.path),
            "name": row.name,
            "size": row.size,
            "state": row.state,
            "failed": failed,
        }
        entry |= {"regions": regions_to_json(row.regions), "misfits": misfits_to_json(row.misfits)}
        entries.append({**entry, "end": end})
    contents = {"scores.csv": _HEADER + b"".join(run.lines), "run.jsonl": b"".join(map(json_line, entries))}
    # At first the journal, so that wherever a table is, it is known what it belongs to; later the table, see `_table`.
    names = sorted(contents, reverse=(out / "scores.csv").exists())
    regions = (line for row in run.rows for line in region_lines(str(row.path), row.regions))
    contents["regions.csv"] = csv_line(REGION_COLUMNS) + b"".join(regions)
    for name in (*names, "regions.csv"):
        with writing(out / name), atomic_path(out / name) as temporary:
            temporary.write_bytes(contents[name])
    return run


def _input_order(rows: Sequence[tuple[str, bool]]) -> list[int]:
    """Indices of `rows` (path, failed), where a later row of a failed image takes the failed one's place."""
    order: list[int] = []
    failed_at: dict[str, int] = {}
    for index, (path, failed) in enumerate(rows):
        place = failed_at.pop(path, len(order))
        order[place : place + 1] = [index]
        if failed:
            failed_at[path] = place
    return order


def absolute(path: str | Path) -> str:
    """What tells images apart: from the root, without `..`, and on Windows whatever the case."""
    return os.path.normcase(os.path.abspath(path))  # noqa: PTH100  links are not followed: that would read the disk
