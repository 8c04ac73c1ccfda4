"""What a run of `predict` or `watch` can be told. Wrong options are told before torch is imported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from cfa_cli.bundle import check_there
from cfa_cli.config import Precision, check_max_pixels, check_threshold
from cfa_cli.data.ignore import check_ignore
from cfa_cli.engine.cluster import check_ray
from cfa_cli.errors import UsageError
from cfa_cli.records import DEFAULT_SAVE, MAX_PIXELS, SaveKind


@dataclass(frozen=True)
class PredictOptions:
    """What a run can be told beside its model and its images. The fields are arguments of `predict`, described there.

    Raises UsageError for values that are out of range or exclude each other, and InputError for an `ignore` that names
    nothing.
    """

    out: str | Path | None = None
    save: Collection[SaveKind] = DEFAULT_SAVE
    resume: bool = False
    force: bool = False
    threshold: float | None = None
    max_fpr: float | None = None
    device: str = "auto"
    precision: Precision | None = None
    compiled: bool = False
    max_pixels: float = MAX_PIXELS
    ignore: str | Path | None = None
    match: bool = False
    ray: str | None = None
    command: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.save, str) or not set(self.save) <= set(get_args(SaveKind)):
            raise UsageError(f"save={self.save!r} is none of the kinds.", f"Give some of {get_args(SaveKind)}, or ().")
        if self.threshold is not None and self.max_fpr is not None:
            raise UsageError("--threshold and --max-fpr exclude each other.", "Give one of them.")
        check_threshold(self.threshold, self.max_fpr)
        check_max_pixels(self.max_pixels)
        check_ignore(self.ignore)
        check_ray(self.ray, self.device)

    def check_model(self, model: object) -> None:
        """Raise BundleError where a path is neither a model nor a folder, UsageError for `match` without a folder."""
        path = Path(model) if isinstance(model, str | Path) else None
        if path is not None and path.is_dir():
            return
        if path is not None:
            check_there(path)
        if self.match:
            raise UsageError("--match chooses among several models.", "Give their folder: --model FOLDER")
