"""The records that the floors hand to each other: frozen, plain, without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cfa_cli.config import FitConfig
from cfa_cli.evidence import Calibration, Drift, HoldoutImages, Recalibration
from cfa_cli.notes import LeftOut, Misfit, misfit_text
from cfa_cli.text import printable

if TYPE_CHECKING:
    import numpy as np

NumberType = Literal["float32", "bfloat16", "float16", "int8"]
Label = Literal["good", "anomalous"]
ExportFormat = Literal["onnx", "openvino", "torch"]
ExportPrecision = Literal["auto", "float32"]
SaveKind = Literal["overlay", "map", "mask", "heatmap"]
DEFAULT_SAVE: tuple[SaveKind, ...] = ("overlay",)

IMAGE_SUFFIXES = (".bmp", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
RESULT_FOLDERS = (
    "heatmaps",
    "maps",
    "masks",
    "overlays",
    "report",
    "samples",
)  # what predict and benchmark write images to
FORMATS = "PNG, JPEG, BMP, TIFF, WebP, PGM or PPM"  # what the suffixes stand for
MAX_PIXELS = 200.0  # megapixels of an image, unless told otherwise: line-scan cameras reach 100
BUNDLE_SUFFIX = ".safetensors"
EXPORT_SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
SHOWN_UNKNOWN = 10  # names of fields, in a warning
MODEL_SUFFIXES = (BUNDLE_SUFFIX, *EXPORT_SUFFIXES.values())


@dataclass(frozen=True)
class Geometry:
    """What happens to an image on its way into the network. Sizes are (height, width) in px."""

    size: tuple[int, int]  # the full frame is resized to this
    crop: tuple[int, int] | None  # then this much of its centre is kept
    mean: tuple[float, float, float]  # RGB, of values in 0..1: the backbone's own
    std: tuple[float, float, float]

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input, px."""
        return self.crop or self.size


@dataclass(frozen=True)
class BackboneInfo:
    """Which backbone, and where its weights came from."""

    name: str
    layers: tuple[str, ...]  # module names of the maps that are used, finest first
    weights: str  # "embedded" | "imagenet: resnet18.tv_in1k" | "file: NAME"
    sha256: str  # of the weights as they were read
    warning: str | None = None  # kept wherever the model is shown
    precision: NumberType | None = None  # what fit computed its maps in; None: not recorded, by cfa before 0.2


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from."""

    cfa: str
    torch: str
    timm: str
    python: str
    date: str  # YYYY-MM-DD, UTC
    images: int  # good images read, held-out ones included
    images_sha256: str  # of the list of relative paths and file sizes
    seed: int
    found: int | None = None  # good images that there were, where a sample of them was drawn


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """What one image is like; measured on a thumbnail, see `cfa_cli.data.statistics`."""

    height: int  # px
    width: int
    grey: bool  # red, green and blue are equal
    brightness: float  # mean of all values, 0..1
    contrast: float  # standard deviation of the grey values, 0..1
    sharpness: float  # standard deviation of the Laplacian of the grey values


@dataclass(frozen=True)
class TrainingImages:
    """What the good images were like, to tell whether another image is like them. Medians are over images.

    Brightness and sharpness are measured on a thumbnail, of values in 0..1: see `cfa_cli.data.statistics`. A spread is
    a robust standard deviation over images (1.4826 times the median distance from the median).
    """

    height: int  # median, px
    width: int
    aspect_low: float  # the smallest height / width
    aspect_high: float  # the largest
    channels: Literal["grey", "colour", "mixed"]  # grey: red, green and blue are equal, however it is stored
    bit_depth: int  # 8, or of what 16-bit files hold: 8, 10, 12, 14 or 16; 2^depth - 1 is white
    brightness: float  # median of the images' means, 0..1
    brightness_spread: float
    sharpness: float  # median of the standard deviation of the thumbnail's Laplacian
    sharpness_spread: float
    pixels_low: int | None = None  # the smallest height x width; None, here and below: not recorded
    pixels_high: int | None = None
    brightness_low: float | None = None
    brightness_high: float | None = None
    sharpness_low: float | None = None
    sharpness_high: float | None = None


@dataclass(frozen=True)
class Bundle:
    """A trained model: all that `predict` needs.

    Tensors (float32 unless said): `descriptor.weight (D, C+2, 1, 1)`, `descriptor.bias (D,)`, `bank (M, D)`,
    `radius ()`, `baseline (h, w)`, by which positions' scores are divided (about 1 on average), and `backbone.*`. Where
    something is ignored also `keep (H, W)`, at the network's input: 1 on pixels that are kept, 0 on the others.
    """

    config: FitConfig
    geometry: Geometry
    grid: tuple[int, int]  # h, w
    backbone: BackboneInfo
    calibration: Calibration
    provenance: Provenance
    tensors: dict[str, np.ndarray] = field(repr=False)
    training: TrainingImages | None = None  # None: of an earlier version
    holdout: HoldoutImages | None = None  # None: of an earlier version
    recalibration: Recalibration | None = None  # None: the thresholds are those of `fit`
    unknown: dict[str, object] = field(default_factory=dict)  # what a newer version wrote: "config.name" -> JSON value

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever uses this model should know, a sentence each."""
        found = [self.backbone.warning] if self.backbone.warning else []
        if self.unknown:
            names = ", ".join(printable(name, 40) for name in list(self.unknown)[:SHOWN_UNKNOWN])
            more = f" and {len(self.unknown) - SHOWN_UNKNOWN} more" if len(self.unknown) > SHOWN_UNKNOWN else ""
            found.append(f"A newer version of cfa wrote this model; this one ignores {names}{more}.")
        return tuple(found)


@dataclass(frozen=True)
class Progress:
    """One step of long work, for a progress bar."""

    phase: str  # "reading", "bank", "training", "calibrating", ...
    done: int
    total: int
    unit: str = "images"
    loss: float | None = None
    epoch: int | None = None  # from 1
    epochs: int | None = None


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class FitResult:
    """What `fit` made."""

    bundle: Bundle
    train_images: int
    holdout_images: int
    skipped: tuple[tuple[str, str], ...]  # (path, reason) of images that could not be read
    losses: tuple[float, ...]  # mean loss of each epoch
    seconds: float
    warnings: tuple[str, ...]
    left_out: LeftOut = field(default_factory=LeftOut)


@dataclass(frozen=True)
class CalibrateResult:
    """What `calibrate` made."""

    bundle: Bundle
    evidence: Recalibration  # also the bundle's `recalibration`
    skipped: tuple[tuple[str, str], ...]  # (path, reason) of images that could not be scored
    seconds: float
    warnings: tuple[str, ...]
    left_out: LeftOut = field(default_factory=LeftOut)


@dataclass(frozen=True)
class Source:
    """One image to score: where it is, and the relative name under which its results are written."""

    path: Path  # of an array: its name
    name: str  # POSIX, relative, unique among the inputs of a run
    array: object = field(default=None, repr=False, compare=False)  # in place of a file: what the caller gave
    state: tuple[int, int] | None = None  # size in bytes, modification time in ns: tells a file that was overwritten


@dataclass(frozen=True)
class ImageResult:
    """One image's row, as text and numbers."""

    path: str
    score: float | None
    normalized: float | None
    threshold: float
    label: Label | None
    milliseconds: float | None
    error: str | None
    misfit: str | None = None  # in what the image is not like the training images
    model: str | None = None  # which of several models scored it
    near_threshold: bool | None = None  # the score lies in the threshold's interval; None: there is none
    regions: tuple[Region, ...] = ()  # by falling peak


@dataclass(frozen=True)
class Region:
    """A marked part of an image, in px of the source: columns from its left, rows from its top."""

    left: int  # its box
    top: int
    width: int
    height: int
    area: int  # px
    centroid: tuple[float, float]  # (column, row)
    peak: float  # highest map value
    peak_at: tuple[int, int]  # (column, row)


@dataclass(frozen=True)
class Prediction:
    """One image's result. Arrays are None where the image could not be read, and once they are written."""

    source: Source
    score: float | None  # image score, >= 0; None if the image could not be read
    normalized: float | None  # 0..1, 0.5 at the threshold
    threshold: float
    label: Label | None
    milliseconds: float | None  # this image's share of its batch's time from decoding to map
    error: str | None = None
    misfits: tuple[Misfit, ...] = ()  # in what the image is not like the training images
    model: str | None = None  # which of several models scored it
    near_threshold: bool | None = None  # the score lies in the threshold's interval; None: there is none
    statistics: ImageStatistics | None = None
    score_map: np.ndarray | None = field(default=None, repr=False)  # (H, W) float32 at the network's input size
    keep: np.ndarray | None = field(default=None, repr=False)  # like it: 1, 0 where ignored; None: as the model does
    map: np.ndarray | None = field(default=None, repr=False)  # (h, w) float32 at the source's size, from `predict`
    image: np.ndarray | None = field(default=None, repr=False)  # (h, w, 3) RGB, uint8 or uint16, source size
    regions: tuple[Region, ...] = ()  # by falling peak; found where maps are brought to the source's size

    @property
    def misfit(self) -> str | None:
        """In what the image is not like the training images, as text."""
        return misfit_text(self.misfits)

    @property
    def result(self) -> ImageResult:
        """The same as text and numbers."""
        return ImageResult(
            path=str(self.source.path),
            score=self.score,
            normalized=self.normalized,
            threshold=self.threshold,
            label=self.label,
            milliseconds=self.milliseconds,
            error=self.error,
            misfit=self.misfit,
            model=self.model,
            near_threshold=self.near_threshold,
            regions=self.regions,
        )


@dataclass(frozen=True)
class ImageFailure:
    """An image that could not be scored, or whose files could not be written, and why."""

    path: str
    error: str


@dataclass(frozen=True)
class PredictSummary:
    """A run of `predict`. Rows of an earlier run that it went on with are counted."""

    command: Literal["predict"]
    out: str | None  # the results' folder
    scores: str | None  # the table's path
    report: str | None  # the report's path, once it is written
    threshold: float | None  # None where several models have one each
    images: int
    good: int
    anomalous: int
    error_count: int  # images without a score, or whose files could not be written
    done_before: int  # of `images`: rows of the earlier run
    seconds: float  # from the call on
    milliseconds: float | None  # mean of an image
    warnings: tuple[str, ...]
    errors: tuple[ImageFailure, ...]  # the first ten; all of them in a complete summary
    worst: tuple[ImageResult, ...]  # the ten highest scores, descending
    results: tuple[ImageResult, ...] = ()  # every image, in a complete summary
    unfinished: tuple[str, ...] = ()  # watched files that were still arriving, or waiting, at the end
    left_out: LeftOut = field(default_factory=LeftOut)  # found beside the images, and not read
    drift: Drift | None = None  # whether the images are no more like those that the threshold rests on
    models: dict[str, int] = field(default_factory=dict)  # images by which of several models scored them
    misfits: dict[str, int] = field(default_factory=dict)  # images by in what they are not like the training images
    near_threshold: int | None = None  # images of either label; None: no model says how sure its threshold is

    def document(self) -> dict[str, object]:
        """Return it for --json."""
        return {**asdict(replace(self, left_out=LeftOut())), "left_out": self.left_out.document()}
