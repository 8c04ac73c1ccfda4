"""The pipeline of `predict`: a stream of sources is scored, written and counted."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import TracebackType

from cfa_cli.data.watch import WatchedFolder
from cfa_cli.engine.cluster_predict import ClusterModel
from cfa_cli.engine.drift import DriftMonitor
from cfa_cli.engine.model import Model
from cfa_cli.engine.predict_options import PredictOptions
from cfa_cli.engine.products import ModelFolder
from cfa_cli.evidence import Drift
from cfa_cli.geometry import resize_map
from cfa_cli.notes import LeftOut, Misfit, misfit_text
from cfa_cli.records import (
    Bundle,
    ImageFailure,
    ImageResult,
    Prediction,
    PredictSummary,
    Progress,
    ProgressCallback,
    Source,
)
from cfa_cli.results.regions import find_regions
from cfa_cli.results.rows import Row
from cfa_cli.results.scores import read_run
from cfa_cli.results.writer import ResultWriter

SHOWN = 10  # images and errors that a summary names


class Predictions(Iterator[Prediction]):
    """The results of a run, one by one, and its `summary` up to there.

    The run is finished, and its report written, when the last result has been taken. A context manager: where not all
    results are taken, `close` keeps what is done.
    """

    def __init__(
        self,
        model: Model | ModelFolder | ClusterModel,
        options: PredictOptions,
        *,
        progress: ProgressCallback | None = None,
        started: float | None = None,
        left_out: LeftOut | None = None,
    ) -> None:
        """Prepare the results' folder.

        model: has the thresholds that are used. progress: is called after each image where their number is known.
        started: the time.perf_counter() that seconds count from. left_out: is filled in while sources are found.

        Raises InputError where the folder holds a run, or cannot be written, and for an unusable `ignore`.
        """
        self._ignore = None if options.ignore is None else model.open_ignore(options.ignore)
        self.bundles = model.bundles  # by name, with the thresholds that are used; the only model's name is ""
        self._warnings = dict.fromkeys(model.warnings)  # in order, each once
        self._model, self._progress, self._max_pixels = model, progress, options.max_pixels
        self._out = None if options.out is None else Path(options.out)
        self._keep_images = self._out is None or bool(options.save)
        self._writer = None
        self._exit = ExitStack()
        self._counts = _Counts()
        self._left_out = LeftOut() if left_out is None else left_out
        self._started = time.perf_counter() if started is None else started
        if self._out is not None:
            writer = ResultWriter(
                self._out,
                model.bundles,
                options.save,
                resume=options.resume,
                force=options.force,
                command=options.command,
                notes=self._warnings,
                ignore="" if self._ignore is None else self._ignore.digest,
            )
            self._writer = self._exit.enter_context(writer)
            for row in writer.earlier:
                self._counts.add(_result(row), row.misfits)
        self._done_before = self._counts.images
        self._sources: list[Iterable[Source | None]] = []
        self._total: int | None = 0
        self._folder: WatchedFolder | None = None
        self._drift: Drift | None = None
        self._stream = self._run()

    def add(self, sources: Sequence[Source]) -> None:
        """Score these as well."""
        self._sources.append(sources)
        if self._total is not None:
            self._total += len(sources)

    def add_stream(self, sources: Iterable[Source | None], count: int | None = None) -> None:
        """Score these as they come; after a None, all before it is handed out without waiting for more.

        `count`: how many they are, if that is known.
        """
        self._sources.append(sources)
        self._total = None if count is None or self._total is None else self._total + count

    def follow(self, folder: WatchedFolder) -> None:
        """Score what arrives in a folder as well."""
        self._folder = folder
        self.add_stream(folder)

    def hold(self, resource: ExitStack) -> None:
        """Close this as well when the run ends."""
        self._exit.push(resource)

    def is_done(self, source: Source) -> bool:
        """Whether an image has its row in `out`."""
        return self._writer is not None and self._writer.is_done(source)

    def __next__(self) -> Prediction:
        return next(self._stream)

    def close(self) -> None:
        """End the run; what has been scored is written."""
        self._stream.close()
        self._exit.close()

    def __enter__(self) -> Predictions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bundle(self) -> Bundle:
        """The model, with the threshold that is used. Raises KeyError where there are several: see `bundles`."""
        return self.bundles[""]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before trusting the scores: of the model, and of images so far that do not fit it."""
        return tuple(self._warnings)

    @property
    def summary(self) -> PredictSummary:
        """What has been scored so far: counts, the ten highest scores, the first ten errors."""
        counts, out = self._counts, self._out
        report = None if out is None else out / "report.html"
        return PredictSummary(
            command="predict",
            out=None if out is None else str(out),
            scores=None if out is None else str(out / "scores.csv"),
            report=str(report) if report is not None and report.exists() else None,
            threshold=self.bundles[""].calibration.threshold if "" in self.bundles else None,
            images=counts.images,
            good=counts.good,
            anomalous=counts.anomalous,
            error_count=counts.error_count,
            done_before=self._done_before,
            seconds=time.perf_counter() - self._started,
            milliseconds=counts.mean_milliseconds,
            warnings=self.warnings,
            errors=tuple(counts.errors),
            worst=counts.worst,
            left_out=self._left_out,
            drift=self._drift,
            models=dict(counts.models),
            misfits={what: count for what, (count, _, _) in counts.misfits.items()},
            near_threshold=counts.near_threshold,
            unfinished=() if self._folder is None else tuple(str(path) for path in self._folder.unfinished),
        )

    @property
    def complete_summary(self) -> PredictSummary:
        """The same with every image's row and every error, read back from `out`."""
        if self._out is None:
            return self.summary
        results = tuple(_result(row) for row in read_run(self._out)[1])
        errors = tuple(ImageFailure(one.path, one.error or "") for one in results if one.error)
        return replace(self.summary, results=results, errors=errors)

    def _run(self) -> Generator[Prediction, None, None]:
        monitors: dict[str, DriftMonitor] = {}
        with self._exit:
            for batch in self._score():
                self._warnings |= dict.fromkeys(self._model.warnings)  # a cluster's come with its results
                final = [self._compared(one) for one in batch if self._folder is None or self._folder.is_final(one)]
                if batch and not final:
                    continue
                for prediction in self._write(final):
                    self._counts.add(prediction.result, prediction.misfits)
                    if self._ignore is not None and (note := self._ignore.note(prediction.source.path)):
                        self._warnings[note] = None
                    if prediction.score is not None:
                        name = prediction.model or ""
                        if name not in monitors:
                            monitors[name] = DriftMonitor(self.bundles[name], rolling=self._total is None)
                        self._alarm(monitors[name].add(prediction), name)
                    if self._progress is not None and self._total:
                        done = self._counts.images - self._done_before
                        self._progress(Progress("scoring", done, self._total))
                    yield prediction
                    del prediction
                del batch, final  # images that were handed out are the caller's
            for name, monitor in monitors.items():
                self._alarm(monitor.finish(), name)
            # At the end, where the report is about to be written: with the counts of the whole run.
            self._warnings |= dict.fromkeys([*self._counts.misfit_notes(), *self._left_out.sentences()])

    def _score(self) -> Iterator[list[Prediction]]:
        sources = chain.from_iterable(self._sources)
        if isinstance(self._model, ClusterModel):
            assert self._writer is not None  # a cluster writes to a folder
            writer = self._writer
            # Names are given out in input order, before anything is scored.
            named = ((source, writer.name_of(source)) for source in sources if source is not None)
            return self._model.score_batches(named, self._ignore)
        return self._model.score_batches(
            sources, keep_images=self._keep_images, max_pixels=self._max_pixels, ignore=self._ignore
        )

    def _alarm(self, drift: Drift | None, name: str) -> None:
        if drift is not None:
            self._drift = self._drift or drift
            self._warnings[f"{name}: {drift.message}" if name else drift.message] = None

    def _write(self, batch: list[Prediction]) -> Iterator[Prediction]:
        """Yield what is in the table by now, without arrays; where nothing is written, the batch with its maps."""
        if self._writer is None:
            for prediction in batch:
                yield self._at_source_size(prediction)
            return
        for prediction in batch:
            yield from self._writer.write(prediction)
        if not batch:  # no more comes for now
            yield from self._writer.flush()

    def _compared(self, prediction: Prediction) -> Prediction:
        """Say whether its score lies near its model's threshold."""
        bundle = self.bundles.get(prediction.model or "")
        if prediction.score is None or bundle is None:
            return prediction
        return replace(prediction, near_threshold=bundle.calibration.is_near(prediction.score))

    def _at_source_size(self, prediction: Prediction) -> Prediction:
        if prediction.score_map is None or prediction.image is None:
            return prediction
        height, width = prediction.image.shape[:2]
        bundle = self.bundles[prediction.model or ""]
        score_map = resize_map(prediction.score_map, bundle.geometry, (height, width))
        return replace(prediction, map=score_map, regions=find_regions(score_map, bundle.calibration))


def _result(row: Row) -> ImageResult:
    return ImageResult(
        path=str(row.path),
        score=row.score,
        normalized=row.normalized,
        threshold=row.threshold,
        label=row.label,
        milliseconds=row.milliseconds,
        error=row.error,
        misfit=misfit_text(row.misfits),
        model=row.model,
        near_threshold=row.near_threshold,
        regions=row.regions,
    )


class _Counts:
    """Counts of a run; their memory does not grow with the number of images."""

    def __init__(self) -> None:
        self.images = self.good = self.anomalous = self.error_count = 0
        self.errors: list[ImageFailure] = []
        self.near_threshold: int | None = None
        self._milliseconds = 0.0
        self._worst: list[tuple[float, int, ImageResult]] = []
        self.models: Counter[str] = Counter()
        self.misfits: dict[str, tuple[int, Misfit, bool]] = {}  # images, the first one's, whether all are the same

    def add(self, result: ImageResult, misfits: Iterable[Misfit]) -> None:
        self.images += 1
        for misfit in misfits:
            count, first, alike = self.misfits.get(misfit.what, (0, misfit, True))
            self.misfits[misfit.what] = count + 1, first, alike and misfit == first
        if result.error is not None:
            self.error_count += 1
            if len(self.errors) < SHOWN:
                self.errors.append(ImageFailure(result.path, result.error))
        if result.score is None:
            return
        self._milliseconds += result.milliseconds or 0.0
        if result.near_threshold is not None:
            self.near_threshold = (self.near_threshold or 0) + result.near_threshold
        if result.label == "anomalous":
            self.anomalous += 1
        else:
            self.good += 1
        if result.model is not None:
            self.models[result.model] += 1
        entry = (result.score / result.threshold, -self.images, result)  # of equal scores the first
        if len(self._worst) < SHOWN:
            heapq.heappush(self._worst, entry)
        else:
            heapq.heappushpop(self._worst, entry)

    def misfit_notes(self) -> Iterator[str]:
        """Say how many images are not like the training images, a sentence for each way in which they are not."""
        for count, first, alike in self.misfits.values():
            example = first if alike else replace(first, figures=f"for example {first.figures}")
            yield f"{count} of {self.images} images {'is' if count == 1 else 'are'} {example}."

    @property
    def mean_milliseconds(self) -> float | None:
        scored = self.good + self.anomalous
        return self._milliseconds / scored if scored else None

    @property
    def worst(self) -> tuple[ImageResult, ...]:
        return tuple(result for _, _, result in sorted(self._worst, key=lambda entry: entry[:2], reverse=True))
