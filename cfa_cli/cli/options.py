"""The words that the commands share, and how their values are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cfa_cli.config import PRESETS, BankKind, FitConfig, Precision, Preset
from cfa_cli.errors import UsageError

DEFAULT_MODEL = Path("cfa-model.safetensors")


Model = Annotated[Path, typer.Option("--model", "-m", help="The model to use.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(help="The backbone's numbers; auto: bfloat16 where the processor multiplies it natively."),
]
MaxFpr = Annotated[float | None, typer.Option(help="Share of good images that the threshold may flag.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes: results and errors alone.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also show how long each phase took.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]

PresetOption = Annotated[
    Preset,
    typer.Option(
        help="default: a K-means bank, one epoch, scores relative to what is usual at their place: more defects found, "
        "several times sooner. paper: the paper's recipe, for comparisons."
    ),
]
Backbone = Annotated[str | None, typer.Option(help="Any timm model with feature maps, for example wide_resnet50_2.")]
Layers = Annotated[str | None, typer.Option(help="Its maps, by stride or name, with commas: 4,8,16 or layer1,layer2.")]
WeightsOption = Annotated[
    str | None,
    typer.Option(help="auto (cache, hub, else embedded), imagenet, embedded, or a file (.safetensors, .pth)."),
]
Size = Annotated[
    str | None, typer.Option(help="The network's input in px: 256, HEIGHTxWIDTH, or auto (the images' aspect).")
]
Crop = Annotated[str | None, typer.Option(help="Keep this much of the centre after the resize: 224, or HEIGHTxWIDTH.")]
Bank = Annotated[BankKind | None, typer.Option(help="How the memory bank is built.")]
GammaC = Annotated[int | None, typer.Option(help="Compress the bank to (h*w)/GAMMA_C centroids.")]
GammaD = Annotated[int | None, typer.Option(help="Reduce the descriptor to C/GAMMA_D channels.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images.")]
BatchSize = Annotated[int | None, typer.Option(help="Images a training step.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="AdamW's learning rate.")]
Seed = Annotated[int | None, typer.Option(help="Of the hold-out, the initial descriptor and the order of images.")]
Holdout = Annotated[float | None, typer.Option(help="Share of the good images kept for calibration.")]


def build_config(
    preset: Preset, *, size: str | None, crop: str | None, layers: str | None, **overrides: object
) -> FitConfig:
    """Return the preset's configuration with whatever was given on the command line. Raises UsageError."""
    from dataclasses import replace

    changes = {name: value for name, value in overrides.items() if value is not None}
    if size is not None:
        changes["size"] = None if size == "auto" else parse_size(size, "--size")
    if crop is not None:
        changes["crop"] = parse_size(crop, "--crop")
    if layers is not None:
        changes["layers"] = tuple(part.strip() for part in layers.split(",") if part.strip())
    return replace(PRESETS[preset], **changes)  # type: ignore[arg-type]


def parse_size(text: str, option: str) -> tuple[int, int]:
    """Read `224` or `256x640` as (height, width) in px. Raises UsageError."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if not match:
        raise UsageError(f"{option} {text} is no size.", f"Write {option} 256, or HEIGHTxWIDTH like 256x640.")
    height = int(match[1])
    return height, int(match[2] or height)
