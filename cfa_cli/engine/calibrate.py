"""The verb `calibrate`: new thresholds for a model, from further good images and known defects, without training."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cfa_cli import __version__
from cfa_cli.bundle import check_there, load_bundle
from cfa_cli.config import check_field, check_max_pixels, check_threshold
from cfa_cli.data.ignore import check_ignore
from cfa_cli.engine.labelled import LabelledImages, PathLike, ScoredImages, find_labelled, score_labelled
from cfa_cli.errors import BundleError, InputError, UsageError
from cfa_cli.evidence import Calibration, HoldoutImages, Recalibration, ThresholdChoice, ThresholdRow
from cfa_cli.records import EXPORT_SUFFIXES, MAX_PIXELS, Bundle, CalibrateResult, ProgressCallback

if TYPE_CHECKING:
    from cfa_cli.engine.ignore import Ignore

# What loads torch or scipy is imported where it is used: arguments are checked first.

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)  # of false alarms: the table has the threshold of each
BELOW = 1 - 1e-6  # of the lowest defect's score: the threshold must hold for it whatever rounding does


def calibrate(
    model: PathLike | Bundle,
    good: PathLike | Sequence[PathLike] = (),
    *,
    defects: PathLike | Sequence[PathLike] = (),
    max_fpr: float | None = None,
    threshold: float | None = None,
    catch_all: bool = False,
    replace_holdout: bool = False,
    min_area: int | None = None,
    ignore: PathLike | None = None,
    device: str = "auto",
    max_pixels: float = MAX_PIXELS,
    progress: ProgressCallback = lambda step: None,
) -> CalibrateResult:
    """Give a model new thresholds; nothing is trained, and nothing is written.

    >>> from cfa_cli import calibrate, save_bundle
    >>> result = calibrate("cfa-model.safetensors", "photos/good-new-lamp", replace_holdout=True)
    >>> save_bundle(result.bundle, "new-lamp.safetensors")

    The position baseline stays the model's. A good image that is given here had no say in it, as an image of the
    hold-out had none in the baseline that it was judged by when the model was fitted: all scores stay those of images
    that the model has not seen. So images that the model was fitted on must not be given.

    model: a bundle or its path; no exported model.
    good: good images, files or folders or globs; they are added to the hold-out.
    defects: folders of defective images. A sub-folder's name is the kind of its images, else the folder's own.
    max_fpr: the share of good images, 0..1, that the threshold may flag; by default what the model was made with.
    threshold: the image score above which an image is anomalous, > 0.
    catch_all: take the largest threshold that all `defects` lie over. Of these three one can be given.
    replace_holdout: put `good` in the place of the hold-out.
    min_area: px of the images that a region must have in one piece, by default the model's. Another one needs
        `replace_holdout`: the scores of the hold-out were made with the model's.
    ignore: what to ignore in place of what the model does: a mask, polygons as JSON, a folder of these by the images'
        names, or "none". The model does not keep it.
    device: "auto", "cpu", "cuda", "cuda:N" or "mps".
    max_pixels: megapixels, > 0; an image file of more is left out.
    progress: is called after each image.

    An image that cannot be read is left out, and is in the result's `skipped`.
    Raises UsageError, InputError, BundleError and DeviceError.
    """
    started = time.perf_counter()
    choice = check_choice(good, defects, max_fpr, threshold, catch_all, replace_holdout)
    check_max_pixels(max_pixels)
    check_ignore(ignore)
    images = find_labelled(good, defects)
    bundle = model if isinstance(model, Bundle) else _load(Path(model))
    given = _with_min_area(bundle, min_area, replace_holdout)

    from cfa_cli.engine.model import open_model
    from cfa_cli.engine.provenance import list_sha256, today

    opened = open_model(given, device=device)
    ignored = None if ignore is None else opened.open_ignore(ignore)
    digest = list_sha256(images.folder, [source.path for source in images.good])
    _check_unseen(bundle, digest, replace_holdout)
    scored = score_labelled(opened, images, max_pixels, progress, ignored)
    aim = _aim(bundle) if max_fpr is None else max_fpr
    if catch_all:
        threshold = BELOW * min(score for scores in scored.defects.values() for score in scores)
    calibration = _recalibrate(given.calibration, scored, aim, threshold, replace_holdout)
    evidence = Recalibration(
        date=today(),
        cfa=__version__,
        choice=choice,
        before=bundle.calibration.threshold,
        good=len(scored.scores),
        good_sha256=digest,
        replaced=replace_holdout,
        defects={kind: len(scores) for kind, scores in scored.defects.items()},
        table=tabulate(
            calibration.holdout_scores,
            scored.defects,
            # A threshold for regions of another area says nothing here.
            {calibration.threshold, *([bundle.calibration.threshold] if given is bundle else [])},
        ),
    )
    holdout = _describe_holdout(bundle, scored, replace_holdout)
    return CalibrateResult(
        bundle=replace(bundle, calibration=calibration, holdout=holdout, recalibration=evidence),
        evidence=evidence,
        skipped=tuple(scored.skipped),
        seconds=time.perf_counter() - started,
        warnings=(
            *opened.warnings,
            *images.warnings,
            *([] if ignored is None else _ignore_warnings(ignored, images)),
            *_warnings(bundle, scored, calibration, evidence, aim),
        ),
        left_out=images.left_out,
    )


def check_choice(
    good: object,
    defects: object,
    max_fpr: float | None,
    threshold: float | None,
    catch_all: bool,
    replace_holdout: bool,
) -> ThresholdChoice:
    """Say what the threshold is chosen by. Raises UsageError where the arguments do not fit together."""
    if (max_fpr is not None) + (threshold is not None) + catch_all > 1:
        raise UsageError("--max-fpr, --threshold and --catch-all exclude each other.", "Give one of them.")
    if catch_all and not defects:
        raise UsageError("--catch-all needs known defects.", "Give their folder with --defects.")
    if replace_holdout and not good:
        raise UsageError("--replace needs good images to put in the hold-out's place.", "Name them after the model.")
    if not (good or defects or max_fpr is not None or threshold is not None):
        raise UsageError(
            "There is nothing to calibrate with.", "Give good images, --defects FOLDER, --max-fpr or --threshold."
        )
    check_threshold(threshold, max_fpr)
    return "catch-all" if catch_all else "threshold" if threshold is not None else "max-fpr"


def check_is_bundle(path: Path) -> None:
    """Raise BundleError unless a file that may be a bundle is at `path`; an exported model is none."""
    if path.suffix.lower() in EXPORT_SUFFIXES.values():
        raise BundleError(
            f"{path} is an exported model: its thresholds are part of its graph.",
            "Calibrate the bundle that it was exported from, and export that again with `cfa export`.",
        )
    check_there(path)


def tabulate(
    good: Sequence[float], defects: Mapping[str, Sequence[float]], thresholds: Iterable[float]
) -> tuple[ThresholdRow, ...]:
    """Tell what thresholds do: those given, those of `RATES`, and where there are defects the one below them all.

    good: scores of the hold-out. defects: scores by kind.
    """
    from cfa_cli.engine.thresholds import INTERVAL, choose_threshold
    from cfa_cli.intervals import clopper_pearson

    values = {*thresholds, *(choose_threshold(good, rate).value for rate in RATES)}
    if scores := [score for each in defects.values() for score in each]:
        values.add(BELOW * min(scores))
    rows = []
    for value in sorted(values):
        flagged = sum(score > value for score in good)
        caught = {kind: sum(score > value for score in each) for kind, each in defects.items()}
        rows.append(ThresholdRow(value, flagged, *clopper_pearson(flagged, len(good), INTERVAL), caught))
    return tuple(rows)


def _with_min_area(bundle: Bundle, min_area: int | None, replace_holdout: bool) -> Bundle:
    """Return the bundle with another `min_area`. Raises UsageError where its hold-out would not go with it."""
    calibration = bundle.calibration
    if min_area is None or min_area == calibration.min_area:
        return bundle
    check_field("min_area", min_area)
    if not replace_holdout:
        raise UsageError(
            f"--min-area {min_area} needs new good images in place of the hold-out, whose scores were made with "
            f"{calibration.min_area}.",
            "Give good images and --replace, or fit the model with another --min-area.",
        )
    return replace(bundle, calibration=replace(calibration, min_area=min_area))


def _recalibrate(
    calibration: Calibration, scored: ScoredImages, max_fpr: float, threshold: float | None, replace_holdout: bool
) -> Calibration:
    """Return the calibration with the scored images in its hold-out, or as its hold-out."""
    from cfa_cli.engine.thresholds import add_images, center_scale, recalibrate, set_thresholds

    if replace_holdout:
        found = set_thresholds(scored.scores, scored.maps, max_fpr, calibration.min_area)
    elif scored.scores:
        found = add_images(calibration, scored.scores, scored.maps, max_fpr)
    else:
        found = recalibrate(calibration, max_fpr=max_fpr)
    return center_scale(recalibrate(found, threshold=threshold))


def _describe_holdout(bundle: Bundle, scored: ScoredImages, replace_holdout: bool) -> HoldoutImages | None:
    """Return what the images of the new hold-out are like; None if that of the old one is not known."""
    from cfa_cli.data.statistics import by_score, join

    if not scored.scores or (bundle.holdout is None and not replace_holdout):
        return bundle.holdout if not scored.scores else None
    further = by_score(scored.scores, scored.statistics, scored.names)
    if bundle.holdout is None or replace_holdout:
        return further
    return join([*bundle.calibration.holdout_scores, *sorted(scored.scores)], bundle.holdout, further)


def _aim(bundle: Bundle) -> float:
    """Return the share of good images that the model's threshold was to flag; where it was fixed, that of its fit."""
    earlier = bundle.recalibration
    return bundle.calibration.max_fpr if earlier and earlier.choice == "max-fpr" else bundle.config.max_fpr


def _check_unseen(bundle: Bundle, digest: str, replace_holdout: bool) -> None:
    """Raise InputError for images that the model has had already."""
    if digest == bundle.provenance.images_sha256:
        raise InputError(
            "These are the images that the model was fitted on: new ones score higher.",
            "Give good images that it has not seen.",
        )
    earlier = bundle.recalibration
    if earlier and earlier.good and digest == earlier.good_sha256 and not replace_holdout:
        raise InputError(
            "These images are in the model's hold-out already.", "Give others, or --replace to keep these alone."
        )


def _warnings(
    before: Bundle, scored: ScoredImages, calibration: Calibration, evidence: Recalibration, aim: float
) -> Iterator[str]:
    """Say what is uncertain, what the choice costs, and where two kinds of images are put together."""
    from cfa_cli.engine.drift import differences
    from cfa_cli.engine.warnings import threshold_warnings

    if evidence.choice == "max-fpr":
        yield from threshold_warnings(calibration)
    elif calibration.max_fpr > aim:
        yield (
            f"{calibration.max_fpr:.1%} of the good images are over this threshold, more than {aim:.1%}: expect "
            f"{calibration.fpr_low:.1%} to {calibration.fpr_high:.1%} of new ones."
        )
    if not evidence.replaced and (found := differences(before, scored.scores, scored.statistics)):
        yield (
            f"The given images differ from the hold-out that they are added to: {', '.join(found)}. If images will "
            "stay like these, let them take its place: --replace."
        )


def _ignore_warnings(ignored: Ignore, images: LabelledImages) -> list[str]:
    from cfa_cli.engine.ignore import ignore_warnings

    if ignored.masks is None:
        return ["These thresholds are for whole images: give `cfa predict --ignore none` as well."]
    sources = [*images.good, *(source for kind in images.defects.values() for source in kind)]
    return ignore_warnings(ignored.masks, [source.path for source in sources], kept=False)


def _load(path: Path) -> Bundle:
    check_is_bundle(path)
    return load_bundle(path)
