"""What `export` can be told. Wrong options are told before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cfa_cli.errors import UsageError
from cfa_cli.records import EXPORT_SUFFIXES, ExportFormat, ExportPrecision

MIN_OPSET = 18


@dataclass(frozen=True)
class ExportOptions:
    """What `export` can be told."""

    format: ExportFormat = "onnx"
    resize: bool = False  # the graph takes uint8 images of any size
    dynamic_batch: bool = False  # any number of images at once, else one
    opset: int | None = None  # of ONNX; None: torch's default
    half: bool = False  # weights and bank are stored as float16
    precision: ExportPrecision = "auto"  # of the backbone: int8 where the model's is and the format can, else float32


def check_options(options: ExportOptions, out: Path, int8: bool) -> None:
    """Raise UsageError for options that do not go with the format, or each other."""
    suffix = EXPORT_SUFFIXES[options.format]
    if out.suffix.lower() != suffix:
        raise UsageError(
            f"--out {out} does not end in {suffix}, by which the format is known.", f"Use for example model{suffix}."
        )
    if options.opset is not None and options.format != "onnx":
        raise UsageError("--opset is for --format onnx.", "Leave it out.")
    if options.opset is not None and options.opset < MIN_OPSET:
        raise UsageError(f"--opset {options.opset} is too old.", f"Use {MIN_OPSET} or later.")
    if int8 and (options.format != "openvino" or options.half):
        raise UsageError("--quantize makes an OpenVINO model INT8.", "Use it with --format openvino, not --half.")
