"""The verb `watch`: scores the images that arrive in a folder."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from cfa_cli.data.watch import WatchedFolder, check_folder
from cfa_cli.engine.predict_options import PredictOptions
from cfa_cli.notes import LeftOut
from cfa_cli.records import Bundle

if TYPE_CHECKING:  # what loads torch is imported once the arguments are checked
    from cfa_cli.engine.model import Model
    from cfa_cli.engine.predictions import Predictions


def watch(model: str | Path | Bundle | Model, folder: str | Path, stop: Event, options: PredictOptions) -> Predictions:
    """Score the images in `folder` and those that arrive, each once it is written to its end, until `stop` is set.

    An image that is overwritten gets a further row, and its files are replaced. Returns when it is ready. Options and
    results are those of `predict`; a result is handed out as soon as its row and its files are written. Images in `out`
    are left out. A file that vanishes before it is read is forgotten; one that stays unreadable has its error. The
    folder may be removed and made again.

    Raises what `predict` raises, and InputError if there is no such folder.
    """
    started = time.perf_counter()
    folder, results = Path(folder), None if options.out is None else Path(options.out)
    check_folder(folder, ignore=results)
    options.check_model(model)
    from cfa_cli.engine.predictions import Predictions
    from cfa_cli.engine.products import open_models

    opened = open_models(model, options)
    opened.warm_up()
    left_out = LeftOut()
    run = Predictions(opened, options, started=started, left_out=left_out)
    run.follow(WatchedFolder(folder, run.is_done, stop, ignore=results, left_out=left_out))
    return run
