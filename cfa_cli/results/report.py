"""report.html: a run's results to look through, sort and adjust, and the training report of `fit`.

Both open from disk, without a server or network. Everything that a file's name can say is escaped: the data travels
as JSON that cannot end its element, and the page sets text, never markup.
"""

from __future__ import annotations

import base64
import heapq
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from cfa_cli.evidence import Calibration
from cfa_cli.notes import misfit_text
from cfa_cli.records import BUNDLE_SUFFIX, Bundle, FitResult, Prediction
from cfa_cli.results.overlays import COLOURS, draw_thumbnail
from cfa_cli.results.pages import templates, write_page
from cfa_cli.results.pictures import REPORT_FOLDER, REPORT_IGNORED, REPORT_IMAGE, SHOWN_BY_BROWSERS
from cfa_cli.results.rows import Row
from cfa_cli.results.scores import read_run
from cfa_cli.results.text import regions_to_json
from cfa_cli.separation import separation
from cfa_cli.text import command_line
from cfa_cli.visibility import visibility

UNUSUAL_SHOWN = 12  # of fit's report: images with the highest scores
SHEET_SHOWN = 40  # of fit's report: images of the contact sheet

# Options that the page sets, or that would be in the way, and how many values each takes.
_REPLACED = {"--threshold": 1, "--max-fpr": 1, "--force": 0, "--resume": 0}


def write_report(
    out: Path,
    bundle: Bundle | Mapping[str, Bundle],
    *,
    command: Sequence[str],
    notes: Iterable[str] = (),
    metrics: Mapping[str, float | None] | None = None,
) -> Path:
    """Write OUT/report.html from the run in `out`, and return its path.

    `command` is the run's command line, word by word: the page offers it with another threshold, unless it is empty.
    `notes` are sentences to show above all: warnings, and what was left out. `metrics` (name -> value) are shown beside
    the ROC curve, which the page draws by itself where the images lie in MVTec's layout.
    Several models are given by name; scores are then shown relative to each one's threshold.
    Raises InputError where `out` holds no whole run, or cannot be written.
    """
    bundles = {"": bundle} if isinstance(bundle, Bundle) else bundle
    several = "" not in bundles
    settings, rows = read_run(out)
    folder = Path(settings["folder"])
    truth = _truth(rows)
    holdout = [
        score / each.calibration.threshold if several else score
        for each in bundles.values()
        for score in each.calibration.holdout_scores
    ]
    if several:
        rows = [row if row.score is None else replace(row, score=row.score / row.threshold) for row in rows]
    data = {
        "rows": [_row_data(row, folder, out, defect) for row, defect in zip(rows, truth, strict=True)],
        "threshold": 1.0 if several else bundles[""].calibration.threshold,
        "holdout": holdout,
        "several": several,
        "saved": settings["save"],
        "command": command_line(_without_replaced(command)),
        "model": _model(command),
        "labelled": any(defect is not None for defect in truth),
    }
    page = templates().get_template("report.html.j2")
    return write_page(
        out / "report.html",
        page.render(
            title=f"cfa report: {out.resolve().name}",
            data=data,
            card=_models_card(bundles) if several else _model_card(bundles[""]),
            warnings=list(dict.fromkeys([*_backbone_warnings(bundles), *notes])),
            metrics={name: value for name, value in (metrics or {}).items() if value is not None},
            colours=_colour_tables(),
        ),
    )


def write_fit_report(path: Path, result: FitResult, predictions: Iterable[Prediction]) -> Path:
    """Write fit's report, one file with its pictures in it, and return its path.

    `predictions` are the good images' own, with `image` and `map`; they are looked at one by one, and only the small
    pictures that are shown are kept. Raises InputError where `path` cannot be written.
    """
    bundle = result.bundle
    expected = result.train_images + result.holdout_images
    every = max(1, -(-expected // SHEET_SHOWN))
    unusual: list[tuple[float, int, dict[str, Any]]] = []
    sheet: list[dict[str, Any]] = []
    for index, prediction in enumerate(predictions):
        if prediction.score is None or prediction.image is None:
            continue
        if index % every == 0:
            sheet.append(_tile(prediction, bundle, marked=False))
        if len(unusual) < UNUSUAL_SHOWN or prediction.score > unusual[0][0]:
            entry = (prediction.score, -index, _tile(prediction, bundle, marked=True))
            (heapq.heappushpop if len(unusual) == UNUSUAL_SHOWN else heapq.heappush)(unusual, entry)
    page = templates().get_template("fit.html.j2")
    calibration = bundle.calibration
    return write_page(
        path,
        page.render(
            title="cfa training report",
            result=result,
            card=_model_card(bundle),
            warnings=list(dict.fromkeys([*filter(None, [bundle.backbone.warning]), *result.warnings])),
            losses=_polyline(result.losses),
            histogram=_histogram(calibration.holdout_scores, calibration.threshold),
            unusual=[tile for _, _, tile in sorted(unusual, reverse=True)],
            sheet=sheet,
        ),
    )


def _row_data(row: Row, folder: Path, out: Path, defect: bool | None) -> list[Any]:
    """One row as the page's scripts expect it, see `state.js`."""
    if row.path.suffix.lower() in SHOWN_BY_BROWSERS:
        url = _relative_url(folder / row.path, out)
    else:
        url = quote(f"report/{row.name}{REPORT_IMAGE}")
    path = os.fsencode(row.path).decode("utf-8", "replace")
    height, width = row.size or (0, 0)
    # The very score: the threshold may be the score of an image that is among those to see.
    score = None if row.score is None else float(np.float32(row.score))
    regions, ignored = regions_to_json(row.regions), (out / REPORT_FOLDER / f"{row.name}{REPORT_IGNORED}").exists()
    told = [misfit_text(row.misfits), row.model, row.near_threshold, ignored]
    return [path, row.name, score, row.milliseconds, row.error, url, width, height, defect, regions, *told]


def _relative_url(path: Path, out: Path) -> str:
    try:
        relative = os.path.relpath(path, out)
    except ValueError:  # another drive of Windows
        return path.as_uri()
    return quote(os.fsencode(relative.replace(os.sep, "/")))


def _truth(rows: Sequence[Row]) -> list[bool | None]:
    """Whether each image shows a defect, by MVTec's layout: test/good, and test/KIND for each kind of defect.

    All None where the images do not lie so.
    """
    kinds = [row.path.parent.name for row in rows]
    laid_out = rows and all(row.path.parent.parent.name == "test" for row in rows)
    if not laid_out or "good" not in kinds or set(kinds) == {"good"}:
        return [None] * len(rows)
    return [kind != "good" for kind in kinds]


def _backbone_warnings(bundles: Mapping[str, Bundle]) -> Iterator[str]:
    return (each.backbone.warning for each in bundles.values() if each.backbone.warning)


def _models_card(bundles: Mapping[str, Bundle]) -> dict[str, str]:
    """What is known about each of several models, for reading."""
    shown = {}
    for name, bundle in bundles.items():
        calibration = bundle.calibration
        images = f"{bundle.provenance.images} good images, {len(calibration.holdout_scores)} for calibration"
        shown[name] = f"{bundle.backbone.name}, {images}, threshold {calibration.threshold:.6g}"
    return {**shown, "Scores": "relative to each model's threshold"}


def _model_card(bundle: Bundle) -> dict[str, str]:
    """What is known about the model, for reading."""
    calibration, provenance, geometry = bundle.calibration, bundle.provenance, bundle.geometry
    height, width = geometry.size
    size = f"{width} × {height} px (width × height)"
    if geometry.crop:
        size += f", centre {geometry.crop[1]} × {geometry.crop[0]} px of it"
    changed, held = bundle.recalibration, len(calibration.holdout_scores)
    images = f"{provenance.images}, {'and' if changed else 'of which'} {held} for calibration"
    seen, separated = visibility(bundle), separation(bundle)
    return {
        "Backbone": bundle.backbone.name,
        "Weights": bundle.backbone.weights,
        "Good images": images,
        "Network input": size,
        **({"Smallest defect": seen.sentence} if seen else {}),
        "Threshold": f"{calibration.threshold:.6g}",
        **({"Smallest region": f"{calibration.min_area} px of the image"} if calibration.min_area > 1 else {}),
        **({"Near the threshold": _near(calibration)} if calibration.threshold_low is not None else {}),
        "False alarms": f"{calibration.fpr_low:.1%} to {calibration.fpr_high:.1%} of good images (90 % interval)",
        **({"Held-out images": separated.sentence} if separated else {}),
        **({"Calibrated": changed.describe(calibration)} if changed else {}),
        "Trained": f"{provenance.date}, seed {provenance.seed}",
        "Trained with": f"cfa {provenance.cfa}, torch {provenance.torch}, timm {provenance.timm}",
        "Report written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _near(calibration: Calibration) -> str:
    return f"{calibration.threshold_low:.6g} to {calibration.threshold_high:.6g} (90 % interval of the threshold)"


def _without_replaced(command: Sequence[str]) -> list[str]:
    words, kept = iter(command), []
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--watch":  # the folder is not to be watched once more, but gone through
            kept += [value] if equals else []
        elif name not in _REPLACED:
            kept.append(word)
        elif not equals:
            for _ in range(_REPLACED[name]):
                next(words, None)
    return kept


def _model(command: Sequence[str]) -> list[str] | None:
    """The bundle that a command named, and one to write beside it, as they are typed; None where it named none."""
    if list(command[:2]) != ["cfa", "predict"]:
        return None
    path = Path("cfa-model.safetensors")
    for word, following in pairwise([*command, ""]):
        name, equals, value = word.partition("=")
        if name in ("--model", "-m"):
            path = Path(value if equals else following)
    if path.suffix.lower() != BUNDLE_SUFFIX:
        return None
    return [command_line([str(each)]) for each in (path, path.with_stem(f"{path.stem}-calibrated"))]


def _colour_tables() -> dict[str, str]:
    """The colour map's channels at 33 places, for the page's SVG filter."""
    places = np.linspace(0, 255, 33).round().astype(int)
    return {name: " ".join(f"{value / 255:.3f}" for value in COLOURS[places, 0, i]) for i, name in enumerate("RGB")}


def _fraction(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _tile(prediction: Prediction, bundle: Bundle, *, marked: bool) -> dict[str, Any]:
    """A small picture, as it is embedded in a page, and what stands below it."""
    assert prediction.image is not None
    score_map = prediction.map if marked else None
    small = draw_thumbnail(prediction.image, score_map, bundle, 320 if marked else 128, prediction)
    encoded = cv2.imencode(".jpg", small[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 80))[1]
    return {
        "name": prediction.source.name,
        "score": prediction.score,
        "over": prediction.score is not None and prediction.score > bundle.calibration.threshold,
        "url": "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode(),
    }


def _polyline(values: Sequence[float]) -> dict[str, Any]:
    """A curve in a box of 600 x 160, as points of an SVG polyline, with its ends."""
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return {"points": "", "low": 0.0, "high": 0.0}
    low, high = min(finite), max(finite)
    step = 600 / max(len(finite) - 1, 1)
    points = (f"{i * step:.1f},{160 - 150 * _fraction(value, low, high):.1f}" for i, value in enumerate(finite))
    return {"points": " ".join(points), "low": low, "high": high}


def _histogram(scores: Sequence[float], threshold: float) -> dict[str, Any]:
    """Bars of the held-out scores in a box of 600 x 160, and the threshold's place in it."""
    low, high = min([*scores, threshold]), max([*scores, threshold])
    step = (high - low) / min(40, max(8, len(scores))) or abs(threshold) or 1.0
    # The threshold is an edge of two bins, and each bin holds its upper edge: a score that is the threshold is good.
    below, above = math.ceil((threshold - low) / step) + 1, math.ceil((high - threshold) / step) + 1
    edges = threshold + step * np.arange(-below, above + 1)
    counts = np.bincount(np.searchsorted(edges, scores, side="left") - 1, minlength=len(edges) - 1)
    width = 600 / len(counts)
    peak = max(1, counts.max())
    bars = [
        {"x": i * width, "width": width - 1, "height": 150 * count / peak, "count": int(count), "from": edges[i]}
        for i, count in enumerate(counts)
        if count
    ]
    low, high = float(edges[0]), float(edges[-1])
    return {"bars": bars, "threshold": below * width, "low": low, "high": high}
