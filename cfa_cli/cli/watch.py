"""`cfa predict --watch FOLDER`: a line for each image that arrives."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any

from cfa_cli.cli.garbage import nothing_to_collect
from cfa_cli.cli.predictions import print_line, warn

if TYPE_CHECKING:
    from cfa_cli.cli.render import Terminal
    from cfa_cli.engine.predictions import Predictions


def watch_folder(model: Path, folder: Path, terminal: Terminal, *, as_json: bool, **arguments: Any) -> Predictions:
    """Score what arrives until SIGINT or SIGTERM, and print a line each once its row and its files are written."""
    from cfa_cli.engine.predict_options import PredictOptions
    from cfa_cli.engine.watch import watch

    with stop_on_signal() as stop:
        with nothing_to_collect():
            run = watch(model, folder, stop, PredictOptions(**arguments))
        with run:
            warn(terminal, run.warnings)
            terminal.note(f"Watching {folder}; Ctrl-C ends.")
            for prediction in run:
                warn(terminal, run.warnings)
                print_line(prediction.result, as_json)
            warn(terminal, run.warnings)
    for path in run.summary.unfinished:
        terminal.warn(f"{path} was not scored: it was still arriving.")
    return run


@contextmanager
def stop_on_signal() -> Iterator[Event]:
    """An event that SIGINT and SIGTERM set; a second one of them acts as it would without this."""
    stop = Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
