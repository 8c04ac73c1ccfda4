"""What the terminal shows of predictions: a line each, and the run's summary."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from cfa_cli.cli import render
from cfa_cli.text import printable, shorten

if TYPE_CHECKING:
    from cfa_cli.records import ImageResult, PredictSummary


def warn(terminal: render.Terminal, warnings: Iterable[str]) -> None:
    """Show warnings that have not been shown yet."""
    for warning in warnings:
        terminal.warn(warning)  # once each


def print_line(result: ImageResult, as_json: bool) -> None:
    """Print one result on stdout at once: a line of columns, or of JSON."""
    path = shorten(printable(result.path))
    if as_json:
        print(json.dumps({"version": render.JSON_VERSION, **asdict(result)}), flush=True)
    elif result.score is None:
        error = shorten(printable(result.error or ""))
        print(f"{'not read':<10}{'':>10}  {path}: {error}", flush=True)
    else:
        remarks = [*(["near the threshold"] if result.near_threshold else []), *filter(None, [result.misfit])]
        remark = f"  ({printable('; '.join(remarks))})" if remarks else ""
        model = f"  {printable(result.model)}" if result.model else ""
        print(f"{result.label:<10}{result.score:>10.4g}  {path}{model}{remark}", flush=True)


def print_summary(summary: PredictSummary) -> None:
    """Print a run's highest scores, counts and errors on stdout."""
    rows = [
        (f"{one.score:.4g}", f"{one.score / one.threshold:.2f}", _verdict(one), one.path)
        for one in summary.worst
        if one.score is not None
    ]
    if rows:
        columns = ("score", "of threshold", "label", "image")
        render.print_table("Highest scores", columns, rows, numeric=columns[:2])
    facts = [("Images", f"{summary.anomalous} anomalous, {summary.good} good")]
    if summary.done_before:
        facts.append(("Done before", f"{summary.done_before}"))
    if summary.error_count:
        facts.append(("Errors", f"{summary.error_count}"))
        facts += [("", failure.error) for failure in summary.errors]
    if summary.unfinished:
        facts.append(("Not scored", f"{len(summary.unfinished)}"))
        facts += [("", path) for path in summary.unfinished]
    if summary.near_threshold is not None:
        facts.append(("Near the threshold", f"{summary.near_threshold}, which may be either"))
    if summary.threshold is not None:
        facts.append(("Threshold", f"{summary.threshold:.4g}"))
    if summary.models:
        facts.append(("Models", ", ".join(f"{name}: {count}" for name, count in sorted(summary.models.items()))))
    if summary.milliseconds is not None:
        facts.append(("Time", f"{summary.milliseconds:.1f} ms an image"))
    facts += [(name, path) for name, path in (("Results", summary.scores), ("Report", summary.report)) if path]
    render.print_facts("Result", facts)


def _verdict(result: ImageResult) -> str:
    return f"{result.label}, near the threshold" if result.near_threshold else str(result.label)
