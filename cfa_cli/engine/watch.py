"""The verb `watch`: scores the images that arrive in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import numpy as np

from cfa_cli.data.watch import Arrivals
from cfa_cli.engine.scorer import BATCH_SIZE, Scorer, score_sources
from cfa_cli.records import Prediction, Source


def watch(
    scorer: Scorer,
    folder: Path,
    threshold: float,
    stop: Event,
    *,
    is_done: Callable[[Source], bool],
    ignore: Path | None = None,
) -> Iterator[list[Prediction]]:
    """Score the images in `folder` and those that arrive, each once it is written to its end, until `stop` is set.

    Returns when it is ready to, and yields what is done together, a few images at most; each has its `image` and its
    `map` at the network's input size.
    Images for which `is_done` is true, and those below `ignore`, are left out. A file that vanishes before it is read
    is forgotten; one that stays unreadable has its error. The folder may be removed and made again.
    Raises InputError if it is not there at the start.
    """
    arrivals = Arrivals(folder, is_done, stop, ignore)
    blank = np.zeros((*scorer.geometry.size, 3), np.uint8)
    scorer(scorer.prepare(blank)[None])  # the first call is slow: not the first image's
    return _score_arrivals(scorer, arrivals, threshold, stop)


def _score_arrivals(scorer: Scorer, arrivals: Arrivals, threshold: float, stop: Event) -> Iterator[list[Prediction]]:
    for ready in arrivals:
        for start in range(0, len(ready), BATCH_SIZE):
            batch = score_sources(scorer, ready[start : start + BATCH_SIZE], threshold, keep_images=True)
            final = [one for one in batch if arrivals.is_final(one.source, readable=one.error is None)]
            if final:
                yield final
            if stop.is_set():
                return
