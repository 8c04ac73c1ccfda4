"""A model ready to score."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, repeat
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cfa_cli.config import Precision
from cfa_cli.data.depth import to_full_scale
from cfa_cli.data.misfits import find_misfits
from cfa_cli.engine.ignore import Ignore
from cfa_cli.engine.network import build_network
from cfa_cli.engine.reading import Decoded, does_not_fit, read_as_they_come
from cfa_cli.engine.thresholds import normalize
from cfa_cli.engine.workers import Workers, images_at_a_time, in_batch
from cfa_cli.errors import DeviceError, UsageError, is_out_of_memory
from cfa_cli.evidence import Calibration
from cfa_cli.geometry import to_input
from cfa_cli.model.backbone import Backbone
from cfa_cli.model.device import backbone_dtype, choose_device, native_bfloat16, number_type
from cfa_cli.model.network import Network
from cfa_cli.model.quantised import multiplies_bytes
from cfa_cli.notes import Misfit
from cfa_cli.records import MAX_PIXELS, Bundle, Geometry, Label, Prediction, Source, TrainingImages
from cfa_cli.results.regions import image_score

BATCH_SIZE = 8
MAX_BYTES_TOGETHER = 100_000_000  # of images that are kept in a batch, unless a single one is larger
_NOT_FINITE = "The model gives this image no finite score: its values are out of range. Fit the model again."


class Scorer(Protocol):
    """What scores batches: the engine's own network, or an exported one."""

    geometry: Geometry
    training: TrainingImages | None  # what it was trained on; None: by an earlier version
    warnings: tuple[str, ...]  # what its user should know, a sentence each

    def prepare(self, image: np.ndarray) -> Tensor:
        """Turn an image (h, w, 3), RGB, uint8 or uint16, into one input. Raises ImageError if it cannot."""
        ...

    def __call__(self, inputs: Tensor, keep: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Score a batch of inputs of one shape: image scores (B,) and maps (B, H, W), float32, >= 0.

        keep: (B, H, W) float32 in place of the scorer's own, which an exported one cannot exchange.
        """
        ...


class NetworkScorer:
    """A network on a device, with the quick search."""

    def __init__(
        self,
        network: Network,
        geometry: Geometry,
        device: str = "auto",
        precision: Precision = "auto",
        warnings: tuple[str, ...] = (),
        training: TrainingImages | None = None,
        ranges: Tensor | None = None,
    ) -> None:
        self.training = training
        self.warnings = warnings
        self.geometry = geometry
        self.device = choose_device(device)
        self.network = network.to(self.device).eval()
        resolved = number_type(precision, self.device, quantisable=ranges is not None)
        backbone = self.network.backbone
        backbone.to(backbone_dtype(resolved)).to(memory_format=torch.channels_last)
        if resolved == "int8" and ranges is not None and isinstance(backbone, Backbone):
            backbone.quantise(ranges)
        self.network.use_quick_search()
        self._workers = Workers(self.device, images_at_a_time(geometry.input_size, BATCH_SIZE))

    def compile(self) -> None:
        """Compile the backbone, for batches and for single images: the same scores but for rounding, a little sooner.

        Takes up to minutes. Raises DeviceError where there is no compiler, UsageError for int8.
        """
        if isinstance(self.network.backbone, Backbone) and self.network.backbone.quantised is not None:
            raise UsageError("--compile does not go with int8.", "Leave --compile out, or add --precision float32.")
        self.network.backbone.compile(options={"freezing": True})  # folds the normalisation into the convolutions
        try:
            for count in (BATCH_SIZE, 1):  # a thread that has several cores needs code of its own
                self(torch.zeros(count, 3, *self.geometry.input_size))
        except RuntimeError as error:
            raise DeviceError(
                f"The backbone cannot be compiled on this machine: {str(error).strip().splitlines()[0].rstrip('.:')}.",
                "Install a C++ compiler (and Triton for CUDA), or leave --compile out.",
            ) from error

    def prepare(self, image: np.ndarray) -> Tensor:
        """Resize, crop and normalise an image (h, w, 3), RGB, uint8 or uint16, to (3, H, W) float32."""
        return to_input(image, self.geometry)

    def __call__(self, inputs: Tensor, keep: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Score normalised images (B, 3, H, W) float32: image scores (B,) and maps (B, H, W), float32, >= 0.

        keep: (B, H, W) float32 in place of the network's own: see `Network.forward`.
        """
        images = self._workers.split(inputs)
        keeps = repeat(None) if keep is None else self._workers.split(keep)
        results = self._workers.map(self._score, list(zip(images, keeps, strict=False)))
        scores, maps = (torch.cat(parts).numpy() for parts in zip(*results, strict=True))
        return scores, maps

    def _score(self, part: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
        inputs, keep = part
        with torch.inference_mode():
            images = inputs.to(self.device).contiguous(memory_format=torch.channels_last)
            scores, maps = self.network(images, None if keep is None else keep.to(self.device))
            return scores.cpu(), maps.cpu()


def load_scorer(bundle: Bundle, device: str = "auto", precision: Precision | None = None) -> NetworkScorer:
    """Make a bundle ready to score.

    `precision` None takes the number type that the model was fitted in, or, with a warning, float32 where the device
    does not compute that one natively. int8 is computed everywhere, as other number types would give other scores.
    """
    warnings: tuple[str, ...] = ()
    if precision is None:
        precision = bundle.backbone.precision or bundle.config.precision  # before 0.2 only the latter was recorded
        if not _is_native(precision, choose_device(device)):
            warnings = (
                f"This model was fitted in {precision}, which this device does not compute natively: it scores in "
                "float32, a little differently from the images that made its threshold.",
            )
            precision = "float32"
    if precision == "int8" and not multiplies_bytes(choose_device(device)):
        warnings = (
            "This model was fitted in int8, which this device does not compute natively: the scores are the same, and "
            "take as long as in float32, or longer.",
        )
    ranges = bundle.tensors.get("ranges")
    return NetworkScorer(
        build_network(bundle),
        bundle.geometry,
        device,
        precision,
        warnings,
        bundle.training,
        None if ranges is None else torch.from_numpy(ranges),
    )


def _is_native(precision: Precision, device: torch.device) -> bool:
    """Tell whether the device multiplies this number type itself; `auto` is made so that it does."""
    return {
        "auto": True,
        "float32": True,
        "bfloat16": native_bfloat16(device),
        "float16": device.type != "cpu",
        "int8": True,
    }[precision]


def score_sources(
    scorer: Scorer,
    sources: Iterable[Source],
    calibration: Calibration,
    *,
    keep_images: bool = False,
    batch_size: int = BATCH_SIZE,
    max_pixels: float = MAX_PIXELS,
    ignore: Ignore | None = None,
) -> Iterator[Prediction]:
    """Score sources as a stream, in order; memory does not grow with their number.

    `calibration` has the threshold, and how small a region counts. Each Prediction has its `score_map`, and its `image`
    where images are kept. An unreadable image has its `error` and no score; one of more than `max_pixels` megapixels is
    not decoded. `ignore` takes the place of what the model itself ignores.
    """
    options = {"keep_images": keep_images, "batch_size": batch_size, "max_pixels": max_pixels, "ignore": ignore}
    for batch in score_batches(scorer, sources, calibration, **options):  # type: ignore[arg-type]
        yield from batch


def score_batches(
    scorer: Scorer,
    sources: Iterable[Source | None],
    calibration: Calibration,
    *,
    keep_images: bool,
    batch_size: int = BATCH_SIZE,
    max_pixels: float = MAX_PIXELS,
    ignore: Ignore | None = None,
) -> Iterator[list[Prediction]]:
    """Do what `score_sources` does, batch by batch.

    A None among the sources says that no more is there for now: what came before is scored without waiting for more,
    and an empty batch follows it.
    """
    batch_size = images_at_a_time(scorer.geometry.input_size, batch_size)
    stream = read_as_they_come(
        sources,
        scorer.prepare,
        full_scale=lambda image: to_full_scale(image, scorer.training),
        keep_images=keep_images,
        ahead=batch_size,
        max_pixels=max_pixels,
        ignore=ignore,
    )
    with ThreadPoolExecutor(1, "cfa-score") as thread:
        # While the caller handles one batch, the next is scored.
        waiting: Future[list[Prediction]] | None = None
        for batch in _batches(stream, batch_size):
            scored, waiting = waiting, thread.submit(_score_batch, scorer, batch, calibration) if batch else None
            if scored:
                yield scored.result()
            scored = None  # what was handed out is the caller's
            if not batch:
                yield []


def _batches(stream: Iterable[Decoded | None], size: int) -> Iterator[list[Decoded]]:
    """Group what is decoded, fewer where images are large; an empty group where no more is there for now."""
    batch: list[Decoded] = []
    for decoded in stream:
        no_more = decoded is None
        if decoded is not None:
            batch.append(decoded)
        decoded = None  # not to be held while the next is waited for
        held = sum(one.image.nbytes for one in batch if one.image is not None)
        if batch and (no_more or len(batch) == size or held > MAX_BYTES_TOGETHER):
            yield batch
            batch = []
        if no_more:
            yield []


def _score_inputs(
    scorer: Scorer, inputs: Sequence[tuple[Tensor, Tensor | None]]
) -> list[tuple[float, np.ndarray] | None]:
    """Score inputs, each with what is kept of it: score and map of each, None where memory is not enough.

    Those of one shape are scored together.
    """
    results: list[tuple[float, np.ndarray] | None] = []
    for _, group in groupby(inputs, key=lambda one: one[0].shape):
        same = list(group)
        keeps = [keep for _, keep in same if keep is not None]  # of all or of none
        try:
            images = in_batch([one for one, _ in same])
            scores, maps = scorer(images, in_batch(keeps)) if keeps else scorer(images)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # Together they may be too much where each by itself is not.
            results += [one for single in same for one in _score_inputs(scorer, [single])] if len(same) > 1 else [None]
        else:
            results += [(float(score), score_map) for score, score_map in zip(scores, maps, strict=True)]
    return results


def _score_batch(scorer: Scorer, batch: list[Decoded], calibration: Calibration) -> list[Prediction]:
    start, threshold = time.perf_counter(), calibration.threshold
    inputs = [(decoded.input, decoded.keep) for decoded in batch if decoded.input is not None]
    results = iter(_score_inputs(scorer, inputs))
    share = (time.perf_counter() - start) / max(1, len(inputs))
    predictions = []
    for decoded in batch:
        scored = next(results) if decoded.input is not None else None
        if scored is None:
            error = decoded.error or does_not_fit(decoded.source)
            predictions.append(Prediction(decoded.source, None, None, threshold, None, None, error=error))
            continue
        score, score_map = scored
        if not (math.isfinite(score) and np.isfinite(score_map).all()):  # NaN is over no threshold, and would be "good"
            predictions.append(Prediction(decoded.source, None, None, threshold, None, None, error=_NOT_FINITE))
            continue
        if calibration.min_area > 1 and decoded.statistics is not None:
            size = decoded.statistics.height, decoded.statistics.width
            score = image_score(score_map, scorer.geometry, size, calibration.min_area)
        label: Label = "anomalous" if score > threshold else "good"
        predictions.append(
            Prediction(
                decoded.source,
                score,
                normalize(score, threshold),
                threshold,
                label,
                1000 * (decoded.seconds + share),
                misfits=_misfits(decoded, scorer.training),
                statistics=decoded.statistics,
                score_map=score_map,
                image=decoded.image,
                keep=None if decoded.keep is None else decoded.keep.numpy(),
            )
        )
    return predictions


def _misfits(decoded: Decoded, training: TrainingImages | None) -> tuple[Misfit, ...]:
    compared = () if training is None or decoded.statistics is None else find_misfits(decoded.statistics, training)
    return (*(() if decoded.misfit is None else (decoded.misfit,)), *compared)
