"""The verb `predict`: images in, scores and maps out."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cfa_cli.config import Precision
from cfa_cli.engine.predict_options import PredictOptions
from cfa_cli.errors import InputError, UsageError
from cfa_cli.notes import LeftOut
from cfa_cli.records import DEFAULT_SAVE, MAX_PIXELS, Bundle, ProgressCallback, SaveKind, Source

# What loads torch is imported where it is used: arguments are checked first, and what is wrong with them is said at
# once.
if TYPE_CHECKING:
    from cfa_cli.engine.model import Model
    from cfa_cli.engine.predictions import Predictions

PathLike = str | Path
Inputs = PathLike | np.ndarray | Iterable[PathLike | np.ndarray]


def predict(
    model: str | Path | Bundle | Model,
    inputs: Inputs,
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
    ray: str | None = None,
    stdin: Iterable[str] = (),
    progress: ProgressCallback | None = None,
    command: Sequence[str] = (),
) -> Predictions:
    """Score images as a stream, in input order; memory does not grow with their number.

    >>> from cfa_cli import predict
    >>> for prediction in predict("cfa-model.safetensors", "photos/"):
    ...     print(prediction.source.path, prediction.score, prediction.label)

    Without `out` each Prediction has the decoded `image` (h, w, 3) and its `map` (h, w) float32, both at the source's
    size. With `out` these are written as the command `cfa predict` writes them, and a Prediction comes without its
    arrays once its row is in scores.csv. An image that cannot be read has its `error` instead.

    model: a bundle's or an exported model's path, a Bundle, or what `open_model` returned; or a folder of bundles, of
        which each image takes the one named like its folder.
    inputs: images to score, in any of these forms:
        - a path, or several: files, folders and globs; "-" reads paths from `stdin`, and scores them as they arrive;
        - an array: (h, w, 3) RGB or (h, w) grey, uint8 or uint16, at least 32 px a side;
        - an iterable of arrays and paths, endless ones too. Arrays are named frame-000001 and so on. An iterator is
          asked for the next only when the result of the one before has been handed out; a list is read ahead.
    out: the folder to write results to; None writes nothing.
    save: what to write beside scores.csv: "overlay", "map", "mask", "heatmap". If empty, there is no report either.
    resume: go on with the run in `out`: paths that have their row are passed over, and an iterator's arrays are
        numbered on. Arrays that are given otherwise have no names to tell them by. force: replace the run.
    threshold: image score above which an image is anomalous, > 0; by default the model's own.
    max_fpr: the share of good images, 0..1, that the threshold may flag by the model's held-out scores.
    device: "auto", "cpu", "cuda", "cuda:N" or "mps". precision: the backbone's numbers, by default as it was fitted.
    compiled: compile the backbone first; takes up to minutes.
    max_pixels: megapixels, > 0; an image file of more is not decoded and has its `error`.
    ignore: what to ignore in place of what the model does: a mask (white is ignored), polygons as JSON, a folder of
        these by the images' names, or "none". Not for exported models.
    match: with a folder of bundles, each image takes the one that fits it best.
    ray: score on a Ray cluster: its address "HOST:PORT", "auto" for the one that this machine is part of, or "local"
        for this machine's cores. `inputs` are paths then, which the workers must see, and `out` is needed.
    stdin: the lines that "-" stands for.
    progress: is called after each image where their number is known.
    command: the command line that the report shows.

    Raises, at the call: UsageError; InputError for inputs that name no image, and where `out` holds a run or cannot be
    written; ImageError for a single array of a wrong form; BundleError; DeviceError.
    """
    started = time.perf_counter()
    options = PredictOptions(
        out=out,
        save=save,
        resume=resume,
        force=force,
        threshold=threshold,
        max_fpr=max_fpr,
        device=device,
        precision=precision,
        compiled=compiled,
        max_pixels=max_pixels,
        ignore=ignore,
        match=match,
        ray=ray,
        command=command,
    )
    left_out = LeftOut()
    listed, items, reads_stdin = _sort_out(inputs, left_out)
    if resume and items and not isinstance(items, Iterator):
        raise UsageError(
            "Arrays have no names by which a run could be resumed.",
            "Give files, an iterator (its arrays are numbered on), or force=True to start again.",
        )
    if ray is not None and (items or reads_stdin):
        raise UsageError("A cluster scores files and folders, not arrays and not `-`.", "Leave --ray out.")
    options.check_model(model)
    from cfa_cli.data.stream import stream_lines, stream_sources
    from cfa_cli.engine.cluster_predict import ClusterModel
    from cfa_cli.engine.predictions import Predictions
    from cfa_cli.engine.products import open_models

    with ExitStack() as held:
        models = (
            open_models(model, options) if ray is None else held.enter_context(closing(ClusterModel(model, options)))
        )
        run = Predictions(models, options, progress=progress, started=started, left_out=left_out)
        run.hold(held.pop_all())
    run.add([source for source in listed if not run.is_done(source)])
    if isinstance(items, Iterator):
        run.add_stream(_one_by_one(stream_sources(items, is_taken=run.is_done, left_out=left_out)))
    else:
        found = stream_sources(items, is_taken=lambda _: False, left_out=left_out)
        run.add_stream(found, count=len(items))
    if reads_stdin:
        lines = stream_lines(stdin, left_out)
        run.add_stream(source for source in lines if source is None or not run.is_done(source))
    return run


def _sort_out(inputs: Inputs, left_out: LeftOut) -> tuple[list[Source], Sequence[object] | Iterator[object], bool]:
    """Return the sources of paths, then what is to be taken one by one, and whether standard input is among the paths.

    What is passed over is added to `left_out`.

    Raises what is wrong with inputs that are known in full: InputError, ImageError, UsageError.
    """
    from cfa_cli.data.inputs import find_sources

    if isinstance(inputs, str | Path):
        inputs = [inputs]
    if isinstance(inputs, np.ndarray) and inputs.ndim != 4:  # 4: images stacked
        from cfa_cli.data.arrays import check_array

        return [], [check_array(inputs, "The array")], False
    if isinstance(inputs, Iterator):
        return [], inputs, False
    if not isinstance(inputs, Iterable):
        raise UsageError(
            f"The inputs are of type {type(inputs).__name__}.", "Give paths, arrays or an iterable of them."
        )
    items = list(inputs)
    if not items:
        raise InputError("There is nothing to score.", "Give images, folders or arrays.")
    if not all(isinstance(item, str | Path) for item in items):
        return [], items, False
    names = [str(item) for item in items]
    given = [name for name in names if name != "-"]
    listed = find_sources(given, left_out=left_out) if given else []
    return listed, [], "-" in names


def _one_by_one(sources: Iterable[Source]) -> Iterator[Source | None]:
    """Ask for no source before the result of the one before is out."""
    for source in sources:
        yield source
        yield None
