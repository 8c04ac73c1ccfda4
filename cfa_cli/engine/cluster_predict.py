"""Scoring on a Ray cluster: Ray Data hands lists of images to workers that each hold the model, and keeps their order.

Workers decode, score and write pictures; their rows come back here, where the caller writes them.
"""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cfa_cli.bundle import load_bundle
from cfa_cli.engine.cluster import (
    Attempts,
    Named,
    Outcome,
    Share,
    connected,
    differing,
    share_of_worker,
    use_cores,
    versions,
)
from cfa_cli.engine.ignore import Ignore, open_ignore
from cfa_cli.engine.model import Model
from cfa_cli.engine.predict_options import PredictOptions
from cfa_cli.engine.products import ModelFolder, open_models
from cfa_cli.engine.runtimes import load_model
from cfa_cli.engine.thresholds import recalibrate
from cfa_cli.engine.warnings import threshold_warnings
from cfa_cli.errors import CfaError, DeviceError, InputError, UsageError
from cfa_cli.records import BUNDLE_SUFFIX, Bundle, Prediction, Source
from cfa_cli.results.pictures import Pictures

MOST_IMAGES = 64  # that a worker is handed at a time: what is done again if it dies
LISTS_A_WORKER = 8  # at least, where there are enough images: the last ones end at about the same time
MOST_ATTEMPTS = 3  # to score an image whose worker dies
_DIED = "Workers died, or were out of reach: their images were scored again by others."


@dataclass(frozen=True)
class Setup:
    """What a worker must know; the same for all, so it travels once to each machine."""

    model: Bundle | Path  # a path: of an exported model or a folder of models, which workers must see
    options: PredictOptions
    ignore: Ignore | None
    folder: str  # the driver's working folder, where relative paths start
    versions: Mapping[str, str]
    cpus: int


class ClusterModel:
    """A model that a cluster's workers score with. Its scores, and the files of its images, are those of `Model`."""

    worker: type[Worker]  # what scores on the cluster

    def __init__(self, model: str | Path | Bundle | Model, options: PredictOptions, workers: int | None = None) -> None:
        """Connect to the cluster at `options.ray`; `close` ends that. workers: at most; None: as many as find room.

        Raises DeviceError where the cluster cannot be used, and what opening the model raises.
        """
        if options.out is None:
            raise UsageError("A cluster's workers write their pictures to a folder.", "Give out=FOLDER.")
        self._options = options
        self._shipped, self.bundles, warnings = _open(model, options)
        self._warnings = dict.fromkeys(warnings)  # in order, each once
        self._held = ExitStack()
        self._held.enter_context(connected(options.ray or "local"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before trusting the scores: of the model, and of the workers so far."""
        return tuple(self._warnings)

    def open_ignore(self, path: str | Path) -> Ignore:
        """Do what `Model.open_ignore` does. Raises UsageError for an exported model and a folder of models."""
        if not isinstance(self._shipped, Bundle):
            raise UsageError(
                "--ignore goes with a single bundle: exported models and those of a folder ignore what they were made "
                "with.",
                "Use the bundle, or leave --ignore out.",
            )
        return open_ignore(path, self._shipped)

    def close(self) -> None:
        """Leave the cluster; one that was started for this ends."""
        self._held.close()

    def score_batches(self, images: Iterable[Named], ignore: Ignore | None = None) -> Iterator[list[Prediction]]:
        """Score images, and write their files under the names beside them; yield predictions in order, without arrays.

        `ignore` takes the place of what the model itself ignores. Raises DeviceError where the cluster gives up.
        """
        import ray

        named = list(images)
        if not named:
            return
        share = share_of_worker(self._options.device)
        setup = Setup(self._shipped, self._options, ignore, str(Path.cwd()), versions(), share.cpus)
        size = max(1, min(MOST_IMAGES, len(named) // (share.workers * LISTS_A_WORKER)))
        lists = [named[start : start + size] for start in range(0, len(named), size)]
        try:
            for some, outcome in zip(lists, self._outcomes(lists, setup, share), strict=True):
                self._warnings |= dict.fromkeys(outcome.warnings)
                if outcome.attempt > 1:
                    self._warnings[_DIED] = None
                yield [
                    replace(prediction, source=source)
                    for (source, _), prediction in zip(some, outcome.predictions, strict=True)
                ]
            yield []  # no more comes
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:500]
            raise DeviceError(
                f"The Ray cluster gave up: {reason.rstrip('.')}.",
                "What is done is kept: go on with --resume when the cluster is well again.",
            ) from error

    def _outcomes(self, lists: Sequence[Sequence[Named]], setup: Setup, share: Share) -> Iterator[Outcome]:
        """Yield the outcome of each list, in order. Raises what a worker raised."""
        import ray
        from ray.data import ActorPoolStrategy, DataContext, from_items

        context = DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.max_consecutive_actor_init_deaths = MOST_ATTEMPTS
        context.execution_no_progress_timeout_s = -1  # large images are slow, and a cluster may be waited for
        items = [{"number": number, "images": pickle.dumps(images)} for number, images in enumerate(lists)]
        attempts = ray.remote(Attempts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        scored = from_items(items, override_num_blocks=len(items)).map_batches(
            self.worker,
            fn_constructor_args=([ray.put(setup)], attempts),
            batch_size=1,
            compute=ActorPoolStrategy(min_size=1, max_size=None, initial_size=share.workers),
            **share.options(),
        )
        for row in scored.iter_rows():
            outcome = pickle.loads(row["outcome"])
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome


def _open(
    model: str | Path | Bundle | Model, options: PredictOptions
) -> tuple[Bundle | Path, dict[str, Bundle], Sequence[str]]:
    """Return what workers are sent, the bundles by name with the thresholds that are used, and warnings."""
    if isinstance(model, str | Path) and Path(model).is_dir():
        folder = ModelFolder(Path(model), options)
        return Path(model), folder.bundles, folder.warnings
    if isinstance(model, Model):
        model = model.bundle
    if isinstance(model, str | Path):
        exported = Path(model).suffix.lower() != BUNDLE_SUFFIX
        bundle = load_model(model, "cpu")[0] if exported else load_bundle(model)
        shipped: Bundle | Path = Path(model) if exported else bundle
    elif not model.tensors:
        raise UsageError("An exported model that is open does not travel to a cluster.", "Give its path.")
    else:
        shipped = bundle = model
    calibration = recalibrate(bundle.calibration, options.max_fpr, options.threshold)
    warnings = (*bundle.warnings, *(() if options.max_fpr is None else threshold_warnings(calibration)))
    return shipped, {"": replace(bundle, calibration=calibration)}, warnings


class Worker:
    """Holds the model on one of the cluster's machines. Ray makes it, and makes it again where it died."""

    def __init__(self, setup: Sequence[Any], attempts: Any) -> None:
        """Open the model. setup: the reference of a `Setup`. attempts: an actor's handle."""
        self._attempts = attempts
        self._host = socket.gethostname()
        self._failure: Exception | None = None
        try:
            self._open(setup[0])
        except Exception as error:  # Ray would begin again and again; the driver is to know
            self._failure = _portable(error)

    def _open(self, reference: Any) -> None:
        import ray

        setup: Setup = ray.get(reference)
        with suppress(OSError):  # no such folder here: what is relative to it will not be found
            os.chdir(setup.folder)
        use_cores(setup.cpus)
        model = setup.model
        if isinstance(model, Path) and not model.exists():
            raise InputError(
                f"{model} is not there on the worker {self._host}.",
                "Exported models and folders of models must lie where every worker sees them; a bundle travels.",
            )
        if isinstance(model, Bundle):  # its arrays lie in the memory that all processes here share
            model = replace(model, tensors={name: tensor.copy() for name, tensor in model.tensors.items()})
        self._options, self._ignore = setup.options, setup.ignore
        self._model = open_models(model, setup.options)
        self._warnings = list(self._model.warnings)
        if note := differing(setup.versions, versions(), self._host):
            self._warnings.append(note)
        self._out = Path(setup.options.out or "")
        self._pictures = Pictures(self._out, self._model.bundles, setup.options.save, min(4, setup.cpus))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """Score one list of images: a batch of one row, {"number", "images"}, as {"outcome"}."""
        if self._failure is not None:
            return {"outcome": [pickle.dumps(self._failure)]}
        try:
            outcome: object = self._score(int(batch["number"][0]), pickle.loads(batch["images"][0]))
        except Exception as error:
            self._pictures.drop()
            outcome = _portable(error)
        return {"outcome": [pickle.dumps(outcome)]}

    def _score(self, number: int, images: Sequence[Named]) -> Outcome:
        import ray

        this_list = f"list {number}"
        attempt = ray.get(self._attempts.begin.remote(this_list))
        if attempt == 1:
            return Outcome(self._score_all(images), attempt, self._warnings)
        # A worker died on this list: one by one, so that an image which kills workers takes no other with it.
        predictions: list[Prediction] = []
        for place, image in enumerate(images):
            this_image = f"image {number}.{place}"
            if ray.get(self._attempts.begin.remote(this_image)) < MOST_ATTEMPTS:
                predictions += self._score_all([image])
                ray.get(self._attempts.end.remote(this_image))
            else:
                error = f"{image[0].path} ended {MOST_ATTEMPTS} workers; most often memory ran out."
                predictions.append(self._failed(image[0], error))
        return Outcome(predictions, attempt, self._warnings)

    def _score_all(self, images: Sequence[Named]) -> list[Prediction]:
        """Score images and write their pictures."""
        names = {source.path: name for source, name in images}
        hidden = {source.path for source, _ in images if not source.path.exists()}
        batches = self._model.score_batches(
            (source for source, _ in images if source.path not in hidden),
            keep_images=bool(self._options.save),
            max_pixels=self._options.max_pixels,
            ignore=self._ignore,
        )
        done: dict[Path, Prediction] = {}
        for source, _ in images:
            if source.path in hidden:
                reason = f"{source.path} is not there on the worker {self._host}: images must lie in a folder that "
                done[source.path] = self._failed(source, reason + "every worker sees.")
        if self._options.save and not (self._out / "run.jsonl").exists():
            unseen = f"{self._out} is not there on the worker {self._host}: pictures must be written to a folder that "
            for batch in batches:
                done |= {one.source.path: _plain(one, unseen + "every worker sees.") for one in batch}
        else:
            for batch in batches:
                for prediction in batch:
                    finished = self._pictures.put(prediction, names[prediction.source.path])
                    done |= {one.source.path: _plain(one) for one, _ in finished}
            done |= {one.source.path: _plain(one) for one, _ in self._pictures.flush()}
        return [done[source.path] for source, _ in images]

    def _failed(self, source: Source, error: str) -> Prediction:
        bundle = self._model.bundles.get("")
        threshold = 0.0 if bundle is None else bundle.calibration.threshold
        return Prediction(source, None, None, threshold, None, None, error)


def _plain(prediction: Prediction, error: str | None = None) -> Prediction:
    """Return a prediction without its arrays, which stay where they are."""
    return replace(prediction, image=None, score_map=None, keep=None, error=prediction.error or error)


def _portable(error: Exception) -> Exception:
    """Return the error as it can be sent: what is raised on purpose as it is, else its text and traceback."""
    if isinstance(error, CfaError):
        return error
    plain = RuntimeError(f"{type(error).__name__} on {socket.gethostname()}: {error}")
    plain.add_note(traceback.format_exc())
    return plain


ClusterModel.worker = Worker
