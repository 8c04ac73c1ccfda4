"""`cfa predict --watch DIR`: a line for each image that arrives."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING

from cfa_cli.cli.render import JSON_VERSION, Terminal

if TYPE_CHECKING:
    from cfa_cli.engine.scorer import Scorer
    from cfa_cli.records import Prediction
    from cfa_cli.results.writer import ResultWriter


def watch_folder(
    scorer: Scorer,
    folder: Path,
    threshold: float,
    writer: ResultWriter,
    out: Path,
    count: Callable[[Prediction], None],
    terminal: Terminal,
    as_json: bool,
) -> None:
    """Score what arrives until SIGINT or SIGTERM, and print a line each once its row and its files are written."""
    from cfa_cli.engine.watch import watch

    with _stop_on_signal() as stop:
        batches = watch(scorer, folder, threshold, stop, is_done=writer.is_done, ignore=out)
        terminal.note(f"Watching {folder}; Ctrl-C ends.")
        for batch in batches:
            for prediction in batch:
                writer.write(prediction)
            writer.flush()
            for prediction in batch:
                count(prediction)
                print(_json_line(prediction) if as_json else _line(prediction), flush=True)


@contextmanager
def _stop_on_signal() -> Iterator[Event]:
    """An event that SIGINT and SIGTERM set; a second one of them acts as usual."""
    stop = Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, usual[signal.Signals(number)])

    usual = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _line(prediction: Prediction) -> str:
    if prediction.score is None:
        return f"{'not read':<10}{'':>10}  {prediction.source.path}: {prediction.error}"
    return f"{prediction.label:<10}{prediction.score:>10.4g}  {prediction.source.path}"


def _json_line(prediction: Prediction) -> str:
    fields = ("score", "normalized", "threshold", "label", "milliseconds", "error")
    values = {name: getattr(prediction, name) for name in fields}
    return json.dumps({"version": JSON_VERSION, "path": str(prediction.source.path), **values})
