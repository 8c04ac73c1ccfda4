"""The verb `watch`: scores the images that arrive in a folder."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from cfa_cli.config import Precision, check_max_pixels
from cfa_cli.data.ignore import check_ignore
from cfa_cli.data.watch import WatchedFolder, check_folder
from cfa_cli.engine.predict import check_model, check_options
from cfa_cli.notes import LeftOut
from cfa_cli.records import DEFAULT_SAVE, MAX_PIXELS, Bundle, SaveKind

if TYPE_CHECKING:  # what loads torch is imported once the arguments are checked
    from cfa_cli.engine.model import Model
    from cfa_cli.engine.predictions import Predictions


def watch(
    model: str | Path | Bundle | Model,
    folder: str | Path,
    stop: Event,
    *,
    out: str | Path | None = None,
    save: Collection[SaveKind] = DEFAULT_SAVE,
    resume: bool = False,
    force: bool = False,
    threshold: float | None = None,
    max_fpr: float | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    compiled: bool = False,
    max_pixels: float = MAX_PIXELS,
    ignore: str | Path | None = None,
    match: bool = False,
    command: Sequence[str] = (),
) -> Predictions:
    """Score the images in `folder` and those that arrive, each once it is written to its end, until `stop` is set.

    An image that is overwritten gets a further row, and its files are replaced. Returns when it is ready. Options and
    results are those of `predict`; a result is handed out as soon as its row and its files are written. Images in `out`
    are left out. A file that vanishes before it is read is forgotten; one that stays unreadable has its error. The
    folder may be removed and made again.

    Raises what `predict` raises, and InputError if there is no such folder.
    """
    started = time.perf_counter()
    folder, results = Path(folder), None if out is None else Path(out)
    check_options(save, threshold, max_fpr)
    check_max_pixels(max_pixels)
    check_ignore(ignore)
    check_folder(folder, ignore=results)
    check_model(model, match)
    from cfa_cli.engine.predictions import Predictions
    from cfa_cli.engine.products import open_models

    opened = open_models(
        model,
        match=match,
        threshold=threshold,
        max_fpr=max_fpr,
        device=device,
        precision=precision,
        compiled=compiled,
    )
    opened.warm_up()
    left_out = LeftOut()
    run = Predictions(
        opened,
        out,
        save,
        resume=resume,
        force=force,
        command=command,
        started=started,
        max_pixels=max_pixels,
        left_out=left_out,
        ignore=ignore,
    )
    run.follow(WatchedFolder(folder, run.is_done, stop, ignore=results, left_out=left_out))
    return run
