"""A model in words, for the summary of `fit` and for `info`."""

from __future__ import annotations

from cfa_cli.evidence import Calibration, Recalibration
from cfa_cli.records import Bundle, Geometry, TrainingImages
from cfa_cli.separation import separation
from cfa_cli.visibility import visibility


def model_facts(bundle: Bundle) -> list[tuple[str, str]]:
    """Describe a model by names and values."""
    config, provenance = bundle.config, bundle.provenance
    descriptor, bank = bundle.tensors["descriptor.weight"].shape, bundle.tensors["bank"].shape
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    seen = visibility(bundle)
    facts = [
        ("Backbone", f"{bundle.backbone.name} ({', '.join(bundle.backbone.layers)})"),
        ("Weights", f"{bundle.backbone.weights} (sha256 {_short(bundle.backbone.sha256)})"),
        ("Computed in", bundle.backbone.precision or "not recorded (fitted by cfa before 0.2)"),
        ("Geometry", _geometry(bundle.geometry, bundle.grid)),
        *([("Smallest defect", seen.sentence)] if seen else []),
        ("Descriptor", f"{descriptor[1] - 2} + 2 -> {descriptor[0]} channels"),
        ("Bank", f"{bank[0]} centroids ({config.bank})"),
        ("Training images", _training(bundle.training)),
        *([("Drawn from", f"{provenance.found} good images: {provenance.images}")] if provenance.found else []),
        *threshold_facts(bundle),
        ("Trained", f"{epochs}, seed {config.seed}, {provenance.date}, cfa {provenance.cfa}"),
    ]
    if config.augment != "none":
        facts.insert(-1, ("Augmented", config.augment))
    if (keep := bundle.tensors.get("keep")) is not None:
        facts.insert(4, ("Ignored", f"{1 - float(keep.mean()):.1%} of the image"))
    return facts + [("Warning", warning) for warning in bundle.warnings]


def threshold_facts(bundle: Bundle) -> list[tuple[str, str]]:
    """Describe a model's thresholds, and how they were chosen if not by `cfa fit`."""
    calibration, changed = bundle.calibration, bundle.recalibration
    separated = separation(bundle)
    return [
        ("Threshold", _threshold(bundle)),
        *([("Near the threshold", near)] if (near := _near(calibration)) else []),
        *([("Held-out images", separated.sentence)] if separated else []),
        *([("Calibrated", changed.describe(calibration))] if changed else []),
        ("Pixel threshold", f"{calibration.pixel_threshold:.4g}"),
        *([("Smallest region", f"{calibration.min_area} px of the image")] if calibration.min_area > 1 else []),
    ]


def _geometry(geometry: Geometry, grid: tuple[int, int]) -> str:
    text = f"full frame to {geometry.size[0]} x {geometry.size[1]} px"
    if geometry.crop:
        text += f", centre {geometry.crop[0]} x {geometry.crop[1]} px"
    return f"{text} (height x width), {grid[0]} x {grid[1]} positions"


def _training(training: TrainingImages | None) -> str:
    if training is None:
        return "not recorded (fitted by cfa before 0.2)"
    return (
        f"{training.width} x {training.height} px (width x height), {training.channels}, {training.bit_depth} bit, "
        f"brightness {training.brightness:.2f} of 1"
    )


def _threshold(bundle: Bundle) -> str:
    calibration, changed = bundle.calibration, bundle.recalibration
    aims = "has" if changed and changed.choice != "max-fpr" else "aims at"
    return (
        f"{calibration.threshold:.4g}, from {len(calibration.holdout_scores)} held-out good images: {aims} "
        f"{calibration.max_fpr:.1%} of good images over it, expect {calibration.fpr_low:.1%} to "
        f"{calibration.fpr_high:.1%}"
    )


def _short(sha256: str) -> str:
    """Shorten a digest, or those of joined backbones' weights."""
    return " + ".join(each[:12] for each in sha256.split("+"))


def _near(calibration: Calibration) -> str | None:
    if calibration.threshold_low is None or calibration.threshold_high is None:
        return None
    text = f"{calibration.threshold_low:.4g} to {calibration.threshold_high:.4g}, the 90 % interval of the threshold"
    held = calibration.holdout_scores
    return text if calibration.threshold_high in held else f"{text}; {len(held)} held-out images bound one end alone"


def threshold_table(evidence: Recalibration, calibration: Calibration) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of what thresholds flag and catch; the chosen one is marked."""
    total, good = sum(evidence.defects.values()), len(calibration.holdout_scores)
    kinds = list(evidence.defects) if len(evidence.defects) > 1 else []
    columns = ["threshold", "false alarms", "90 % interval", *(["caught"] if total else []), *kinds, ""]
    rows = []
    for row in evidence.table:
        caught = [f"{sum(row.caught.values())} of {total}"] if total else []
        caught += [f"{row.caught.get(kind, 0)} of {evidence.defects[kind]}" for kind in kinds]
        mark = "chosen" if row.threshold == calibration.threshold else ""
        mark = mark or ("before" if row.threshold == evidence.before else "")
        interval = f"{row.fpr_low:.1%} to {row.fpr_high:.1%}"
        rows.append([f"{row.threshold:.5g}", f"{row.flagged} of {good}", interval, *caught, mark])
    return columns, rows
