"""A model in words, for the summary of `fit` and for `info`."""

from __future__ import annotations

from cfa_cli.records import Bundle, Geometry, TrainingImages


def model_facts(bundle: Bundle) -> list[tuple[str, str]]:
    """Describe a model by names and values."""
    config, calibration, provenance = bundle.config, bundle.calibration, bundle.provenance
    descriptor, bank = bundle.tensors["descriptor.weight"].shape, bundle.tensors["bank"].shape
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    facts = [
        ("Backbone", f"{bundle.backbone.name} ({', '.join(bundle.backbone.layers)})"),
        ("Weights", f"{bundle.backbone.weights} (sha256 {bundle.backbone.sha256[:12]})"),
        ("Computed in", bundle.backbone.precision or "not recorded (fitted by cfa before 0.2)"),
        ("Geometry", _geometry(bundle.geometry, bundle.grid)),
        ("Descriptor", f"{descriptor[1] - 2} + 2 -> {descriptor[0]} channels"),
        ("Bank", f"{bank[0]} centroids ({config.bank})"),
        ("Training images", _training(bundle.training)),
        ("Threshold", _threshold(bundle)),
        ("Pixel threshold", f"{calibration.pixel_threshold:.4g}"),
        ("Trained", f"{epochs}, seed {config.seed}, {provenance.date}, cfa {provenance.cfa}"),
    ]
    return facts + [("Warning", warning) for warning in bundle.warnings]


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
    calibration = bundle.calibration
    return (
        f"{calibration.threshold:.4g}, from {len(calibration.holdout_scores)} held-out good images: aims at "
        f"{calibration.max_fpr:.1%} of good images over it, expect {calibration.fpr_low:.1%} to "
        f"{calibration.fpr_high:.1%}"
    )
