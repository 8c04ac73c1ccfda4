"""FLOOR 0, what a fit can be told: every field's type, range, default and help stand here, and nowhere else.

A `FitConfig` is checked when it is made, from Python as from the terminal, whose options are made from these fields.
"""

from __future__ import annotations

import math
import re
import types
import typing
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal

from cfa_cli.errors import UsageError

BankKind = Literal["mean", "ema", "kmeans"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Preset = Literal["default", "fast", "paper"]
Augment = Literal["none", "rotate", "flip", "rotate+flip"]

MIN_SIDE = 32  # px, of images and of the network's input
MAX_SIDE = 8192  # px, of the network's input

AUTHORS_LAYERS = ("authors",)  # of `layers`: the maps that the paper's authors take of a backbone

Size = tuple[int, int]  # (height, width) in px


@dataclass(frozen=True)
class Range:
    """The numbers that a field takes: `low` to `high`, the ends included unless `open`."""

    low: float
    high: float = math.inf
    open: bool = False

    def __contains__(self, number: float) -> bool:
        return self.low < number < self.high if self.open else self.low <= number <= self.high

    def __str__(self) -> str:
        low, high = f"{self.low:.15g}", f"{self.high:.15g}"
        if math.isinf(self.high):
            return f"more than {low}" if self.open else f"{low} or more"
        return f"more than {low} and less than {high}" if self.open else f"{low} to {high}"


SIDE = Range(MIN_SIDE, MAX_SIDE)
SHARE = Range(0, 1, open=True)


@dataclass(frozen=True)
class FitConfig:
    """What `fit` can be told. The defaults are `--preset default`; `PRESETS` has the others.

    Each field is annotated with its type, the numbers that it takes and what it means.
    Raises UsageError, naming the field, for a value of another type or out of range, and for fields that do not fit
    together.

    >>> FitConfig(backbone="wide_resnet50_2", size=(256, 256), crop=(224, 224))
    """

    backbone: Annotated[str, "Any timm model with feature maps, for example wide_resnet50_2; A+B joins two."] = (
        "resnet18"
    )
    layers: Annotated[
        tuple[str, ...] | None,
        "Its feature maps: strides (4,8,16), any of its modules (layer1,layer2.0; A+B stacks two), or authors.",
    ] = None
    weights: Annotated[
        str, "auto (cache, hub, else embedded), imagenet, embedded, or a file (.safetensors, .pth); A+B for two."
    ] = "auto"
    size: Annotated[
        Size | Literal["small", "full"] | None,
        SIDE,
        "The input in px: 256, HEIGHTxWIDTH, auto (448 x 448 in the images' aspect), small (320 x 320), full.",
    ] = None
    crop: Annotated[Size | None, SIDE, "Keep this much of the centre after the resize: 224, or HEIGHTxWIDTH."] = None
    stride: Annotated[
        int, Range(1, MAX_SIDE), "Px of the input from one patch to the next: finer feature maps are thinned to it."
    ] = 8
    bank: Annotated[BankKind, "How the memory bank is built."] = "kmeans"
    gamma_c: Annotated[
        float | None,
        Range(0, open=True),
        "The memory bank has (h*w)/GAMMA_C centroids, of h*w patches an image; below 1 for kmeans alone; auto: 0.5 for "
        "kmeans, 1 for the others, or what keeps them within 6272.",
    ] = None
    gamma_d: Annotated[int, Range(1), "Reduce the descriptor to C/GAMMA_D channels."] = 2
    neighbours: Annotated[int, Range(1), "K = J of the paper's loss."] = 3
    score_neighbours: Annotated[int, Range(1), "K of the paper's score; 1: the nearest distance itself."] = 1
    whiten: Annotated[bool, "Let directions count less in which good patches lie far from their centroids."] = True
    normalize_positions: Annotated[bool, "Divide scores by their position's baseline, from good images."] = True
    epochs: Annotated[int, Range(0), "Passes over the training images that adapt the descriptor (the paper's: 30)."] = 0
    batch_size: Annotated[int, Range(1), "Images a training step."] = 4
    lr: Annotated[float, Range(0, open=True), "AdamW's learning rate."] = 1e-3
    weight_decay: Annotated[float, Range(0), "AdamW's weight decay."] = 5e-4
    sigma: Annotated[float, Range(0, MAX_SIDE), "Of the score map's Gaussian, px of the network's input."] = 4.0
    max_images: Annotated[
        int, Range(2), "Of more good images draw so many, by folder: some to train on, the others to calibrate."
    ] = 2500
    holdout: Annotated[float, SHARE, "Share of the good images kept from training, for calibration."] = 0.2
    max_fpr: Annotated[float, SHARE, "Share of good images that the threshold may flag."] = 0.05
    min_area: Annotated[
        int,
        Range(1),
        "Px of the images that a region must have over the threshold, in one piece: smaller ones are specks, which are "
        "not marked and do not make an image anomalous.",
    ] = 1
    augment: Annotated[
        Augment,
        "Learn good images turned too (by quarters; by half where the input is not square), or mirrored left to right.",
    ] = "none"
    seed: Annotated[int, Range(0, 2**32 - 1), "Of the hold-out, the initial descriptor and the order of images."] = 0
    device: Annotated[str, "auto, cpu, cuda, cuda:N or mps."] = "auto"
    precision: Annotated[
        Precision,
        "The backbone's numbers; auto: the shortest that the processor multiplies natively; int8 is for ResNets alone.",
    ] = "auto"

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(FitConfig, include_extras=True).items():
            object.__setattr__(self, name, checked(name, kind, getattr(self, name)))
        check_device_name(self.device)
        backbone_names(self.backbone)
        if self.layers is not None and not self.layers:
            raise UsageError("layers names no layer.", "Write for example --layers 4,8,16.")
        if self.gamma_c is not None and self.gamma_c < 1 and self.bank != "kmeans":
            raise UsageError(
                f"The bank {self.bank} has at most a centroid a patch: gamma_c {self.gamma_c:g} is too small.",
                "Give 1 or more, or --bank kmeans.",
            )
        if self.crop is not None:
            paper = "The paper's is --size 256 --crop 224."
            if not isinstance(self.size, tuple):
                raise UsageError("crop needs a fixed size.", paper)
            if self.crop[0] > self.size[0] or self.crop[1] > self.size[1]:
                raise UsageError("crop is larger than size.", paper)


def check_field(name: str, value: object) -> None:
    """Raise UsageError unless FitConfig's field of that name takes the value."""
    checked(name, typing.get_type_hints(FitConfig, include_extras=True)[name], value)


def backbone_names(backbone: str) -> tuple[str, ...]:
    """Return the name of a backbone, or those of two that are joined ("A+B"). Raises UsageError for anything else."""
    names = tuple(backbone.split("+"))
    if len(names) > 2 or not all(names):
        raise UsageError(f"The backbone '{backbone}' is neither one name nor two.", "Write A+B to join A and B.")
    return names


def check_device_name(name: str) -> None:
    """Raise UsageError unless `name` is auto, cpu, cuda, cuda:N or mps; whether it is there is not looked at."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", name):
        raise UsageError(f"There is no device called '{name}'.", "Use --device auto, cpu, cuda, cuda:N or mps.")


def check_max_pixels(max_pixels: float) -> None:
    """Raise UsageError unless `max_pixels` (megapixels) is a positive number."""
    if not (math.isfinite(max_pixels) and max_pixels > 0):
        raise UsageError(f"--max-pixels {max_pixels} is not a positive number.", "Give megapixels, for example 200.")


def check_threshold(threshold: float | None, max_fpr: float | None) -> None:
    """Raise UsageError unless `threshold`, where it is given, is a positive number and `max_fpr` within 0..1."""
    if threshold is not None and not (math.isfinite(threshold) and threshold > 0):
        raise UsageError(f"--threshold {threshold} is not a positive number.", "`cfa info` shows the model's own.")
    if max_fpr is not None and not 0 < max_fpr < 1:
        raise UsageError(f"--max-fpr {max_fpr} is not between 0 and 1.", "Use for example --max-fpr 0.05.")


def checked(name: str, kind: Any, value: Any) -> Any:
    """Return `value` as the annotation `kind` has it: whole numbers as int, lists as tuples. Raises UsageError."""
    if typing.get_origin(kind) is Annotated:
        base, *notes = typing.get_args(kind)
        value = checked(name, base, value)
        limits = [note for note in notes if isinstance(note, Range)]
        for number in value if isinstance(value, tuple) else (value,):
            for limit in limits:
                if number is not None and not isinstance(number, str) and number not in limit:
                    raise UsageError(f"{name} {number} is out of range.", f"Give {limit}{_default(name)}.")
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        words = [word for kind in arguments if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
        as_it_is = value is None or (isinstance(value, str) and value in words)
        return value if as_it_is else checked(name, arguments[0], value)
    if origin is Literal:
        if value not in arguments:
            raise UsageError(f"{name} {value!r} is not known.", f"Give {', '.join(arguments[:-1])} or {arguments[-1]}.")
        return value
    if origin is tuple and isinstance(value, tuple | list):
        parts = [arguments[0]] * len(value) if arguments[1:] == (...,) else list(arguments)
        if len(parts) == len(value):
            return tuple(checked(name, part, one) for part, one in zip(parts, value, strict=True))
    if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if kind is float and isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind in (str, bool) and isinstance(value, kind):
        return value
    raise UsageError(f"{name} {value!r} is not {_NOUNS.get(kind, 'a tuple of names')}.", f"Give one{_default(name)}.")


def _default(name: str) -> str:
    value = getattr(FitConfig, name, None)
    return "" if value is None else f"; the default is {value}"


_NOUNS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    Size: "a size: (height, width) in px",
}


BEFORE_THEY_WERE_FIELDS: dict[str, Any] = {"whiten": False, "stride": 1}  # what files without these fields mean

MAX_AUTO_CENTROIDS = 6272  # twice the paper's, which are those of 224 x 224 px at stride 4

PRESETS: dict[Preset, FitConfig] = {
    "default": FitConfig(),
    "fast": FitConfig(size="small"),
    "paper": FitConfig(
        layers=AUTHORS_LAYERS,
        size=(224, 224),
        stride=4,
        bank="mean",
        gamma_c=1,
        gamma_d=1,
        score_neighbours=3,
        whiten=False,
        normalize_positions=False,
        epochs=30,
    ),
}
