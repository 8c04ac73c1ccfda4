"""One evaluation of a benchmark: fit on a category's good images, score its test images, measure."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cfa_cli.bundle import save_bundle
from cfa_cli.config import FitConfig
from cfa_cli.data.category import Category
from cfa_cli.data.ignore import IgnoreMasks
from cfa_cli.data.masks import check_masks
from cfa_cli.engine.fit import fit
from cfa_cli.engine.measure import Measured, map_path, measure
from cfa_cli.engine.model import open_model
from cfa_cli.engine.samples import write_samples
from cfa_cli.evidence import Calibration
from cfa_cli.records import Bundle, ProgressCallback
from cfa_cli.results.benchmark import Evaluation, EvaluationKey, evaluation_label


@dataclass(frozen=True)
class Job:
    """What to evaluate."""

    category: Category
    config: FitConfig
    model: Path | None = None  # where to keep the model
    maps: Path | None = None  # the folder to keep the score maps in
    samples: Path | None = None  # the benchmark's folder, to keep pictures of sample results in
    ignore: IgnoreMasks | None = None  # what is not looked at, and in no pixel metric

    @property
    def key(self) -> EvaluationKey:
        """What tells its evaluation from the others of a benchmark."""
        return self.config.backbone, self.config.seed, self.category.name

    @property
    def label(self) -> str:
        """Name it in a sentence."""
        return evaluation_label(self.category.name, self.config.backbone, self.config.seed)

    def outputs(self) -> list[Path]:
        """The files that the job keeps."""
        maps = [] if self.maps is None else [map_path(self.maps, self.category, each) for each in self.category.test]
        return maps if self.model is None else [self.model, *maps]


def evaluate(job: Job, progress: ProgressCallback = lambda step: None) -> Evaluation:
    """Fit, score and measure one category. Test images are looked at by the metrics alone.

    Raises what `fit` and `measure` raise.
    """
    category, config = job.category, job.config
    notes = check_category(category)  # what is wrong with a mask is said before the fit, which takes minutes
    reset_peak_memory()
    ignore = None if job.ignore is None else job.ignore.path
    result = fit(list(category.train), config, ignore=ignore, progress=progress)
    if job.model is not None:
        save_bundle(result.bundle, job.model, force=True)
    model = open_model(result.bundle, device=config.device)
    measured = measure(category, model, maps=job.maps, ignore=job.ignore, progress=progress)
    evaluation = describe(category, measured, result.bundle, config.device, job.ignore)
    if job.samples is not None:
        write_samples(job.samples, category, model, evaluation, job.ignore)
    return replace(
        evaluation,
        train_images=result.train_images,
        holdout_images=result.holdout_images,
        fit_seconds=result.seconds,
        warnings=(*(f"{path} was left out: {reason}" for path, reason in result.skipped), *result.warnings, *notes),
    )


def check_category(category: Category) -> tuple[str, ...]:
    """Read a category's masks for what is wrong with them; return what is unusual, a sentence each."""
    masks = [(image.path, image.mask) for image in category.test if image.mask is not None and category.has_masks]
    return (*category.notes, *check_masks(masks))


def describe(
    category: Category, measured: Measured, bundle: Bundle, device: str, ignore: IgnoreMasks | None
) -> Evaluation:
    """Put what was measured and what is known of the model into one record."""
    held_out = len(bundle.calibration.holdout_scores)
    labels = [image.anomalous for image in measured.images]
    return Evaluation(
        backbone=bundle.backbone.name,
        seed=bundle.provenance.seed,
        category=category.name,
        image_auroc=measured.image.auroc,
        image_f1max=measured.image.f1_max,
        pixel_auroc=measured.pixels.auroc,
        aupro=measured.pixels.aupro,
        pixel_f1max=measured.pixels.f1_max,
        threshold=measured.threshold,
        fpr=measured.at_threshold.fpr,
        recall=measured.at_threshold.recall,
        f1=measured.at_threshold.f1,
        train_images=bundle.provenance.images - held_out,
        holdout_images=held_out,
        test_good=labels.count(False),
        test_anomalous=labels.count(True),
        fit_seconds=None,
        milliseconds=measured.milliseconds,
        peak_memory_mb=_peak_memory_mb(),
        peak_device_memory_mb=torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None,
        device=device,
        input_size=bundle.geometry.input_size,
        weights=bundle.backbone.weights,
        weights_sha256=bundle.backbone.sha256,
        data_sha256=data_digest(category, ignore),
        warnings=(),
        images=measured.images,
        kinds=measured.kinds,
        near=_share_near(bundle.calibration, [image.score for image in measured.images]),
        curve=measured.pixels.points,
    )


def _share_near(calibration: Calibration, scores: Sequence[float]) -> float | None:
    near = [calibration.is_near(score) for score in scores]
    return None if None in near else sum(map(bool, near)) / len(near)


def data_digest(category: Category, ignore: IgnoreMasks | None) -> str:
    """Digest the names and sizes of a category's files, so that results of other data are not taken for its own.

    What is ignored is part of the data.
    """
    digest = hashlib.sha256()
    for path in (*category.train, *(p for t in category.test for p in (t.path, t.mask) if p is not None)):
        digest.update(f"{path.parent.name}/{path.name}\0{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    if ignore is not None:
        digest.update(ignore.digest.encode())
    return digest.hexdigest()


def reset_peak_memory() -> None:
    """Linux can forget a process's peak; elsewhere the peak is that of all runs so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # some containers forbid it
            Path("/proc/self/clear_refs").write_text("5", "ascii")


def _peak_memory_mb() -> float | None:
    """Physical memory that this process has used at most; None where the system does not tell."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024 / 1e6
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return None
