"""Writing what a fit made: the model and, if it is wanted, the page about its training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfa_cli.bundle import save_bundle
from cfa_cli.data.inputs import find_good_images, find_sources
from cfa_cli.engine.describe import model_document
from cfa_cli.engine.ignore import open_ignore
from cfa_cli.engine.sampling import sample_by_folder
from cfa_cli.engine.scorer import load_scorer, score_sources
from cfa_cli.records import FitResult, Prediction, Progress, ProgressCallback
from cfa_cli.results.report import write_fit_report


@dataclass(frozen=True)
class SavedFit:
    """What a fit made and where it was written."""

    result: FitResult
    model: Path
    bytes: int  # of the model
    report: Path | None

    def document(self) -> dict[str, Any]:
        """Return the fit for --json."""
        result = self.result
        return {
            "command": "fit",
            "model": str(self.model),
            "bytes": self.bytes,
            "report": str(self.report) if self.report else None,
            "seconds": result.seconds,
            "train_images": result.train_images,
            "holdout_images": result.holdout_images,
            "skipped": [{"path": path, "reason": reason} for path, reason in result.skipped],
            "left_out": result.left_out.document(),
            "losses": result.losses,
            "warnings": result.warnings,
            **model_document(result.bundle),
        }


def save_fit(
    result: FitResult,
    good: Path,
    model: Path,
    report: Path | None,
    *,
    force: bool,
    device: str,
    max_pixels: float,
    ignore: str | Path | None = None,
    progress: ProgressCallback,
) -> SavedFit:
    """Write the model and, if `report` names a page, the page, which shows the images in `good` with their scores.

    `ignore` is what the fit was told. Raises InputError where a file exists (unless `force`) or cannot be written.
    """
    written = save_bundle(result.bundle, model, force)
    if report is not None:
        write_fit_report(report, result, _score(result, good, device, max_pixels, ignore, progress))
    return SavedFit(result, model, written, report)


def _score(
    result: FitResult,
    good: Path,
    device: str,
    max_pixels: float,
    ignore: str | Path | None,
    progress: ProgressCallback,
) -> Iterator[Prediction]:
    config = result.bundle.config
    drawn = set(sample_by_folder(find_good_images(good), config.max_images, config.seed))
    sources = [source for source in find_sources([str(good)]) if source.path in drawn]
    scorer, calibration = load_scorer(result.bundle, device), result.bundle.calibration
    ignored = None if ignore is None else open_ignore(ignore, result.bundle)
    predictions = score_sources(scorer, sources, calibration, keep_images=True, max_pixels=max_pixels, ignore=ignored)
    for number, prediction in enumerate(predictions, start=1):
        progress(Progress("scoring", number, len(sources)))
        yield prediction
