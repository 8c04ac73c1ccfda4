"""What a benchmark found: the records, and means and spreads."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev

from cfa_cli.config import FitConfig

METRICS = {  # in the order of the field's tables
    "image_auroc": "image AUROC",
    "image_f1max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "pixel_f1max": "pixel F1-max",
}
GOOD = "good"  # the kind of all defect-free test images
EvaluationKey = tuple[str, int, str]  # backbone, seed, category


@dataclass(frozen=True)
class ImageScore:
    """A test image's result."""

    name: str  # below the category's test folder: "scratch/003.png"
    kind: str  # "good", or the defect's name
    score: float
    pro: float | None  # its own share of AUPRO: the mean overlap with its regions; None without regions

    @property
    def anomalous(self) -> bool:
        """Whether it shows a defect."""
        return self.kind != GOOD


@dataclass(frozen=True)
class KindFigures:
    """What is found of one kind of defect. Metrics: 0..1, None where undefined."""

    kind: str
    images: int
    caught: int  # images over the threshold
    image_auroc: float | None  # against all good test images
    aupro: float | None  # of its images and the good ones


@dataclass(frozen=True)
class Evaluation:
    """What a model reaches on one category: of a backbone and seed that were fitted for it, or one that was given.

    Metrics: 0..1, None where undefined.
    """

    backbone: str
    seed: int
    category: str
    image_auroc: float | None
    image_f1max: float | None
    pixel_auroc: float | None
    aupro: float | None
    pixel_f1max: float | None
    threshold: float  # from good images
    fpr: float | None  # of this threshold on the good test images
    recall: float | None  # of this threshold on the anomalous test images
    f1: float | None  # of this threshold
    train_images: int
    holdout_images: int  # good images that calibrated the threshold
    test_good: int
    test_anomalous: int
    fit_seconds: float | None  # None: it was not fitted here
    milliseconds: float  # an image, from decoding to map
    peak_memory_mb: float | None  # the process's own; None where the system does not tell
    peak_device_memory_mb: float | None  # allocated on the accelerator
    device: str
    input_size: tuple[int, int]  # height and width, px
    weights: str
    weights_sha256: str
    data_sha256: str  # of the category's file names and sizes
    warnings: tuple[str, ...]
    command: str = ""  # that repeats it
    versions: str = ""  # "cfa 0.1.0, torch 2.9.0, timm 1.0.22": what it was computed with
    model: str = ""  # the name of a model that was given; "": it was fitted here
    images: tuple[ImageScore, ...] = ()  # of all test images; () in results of earlier versions, as what follows
    kinds: tuple[KindFigures, ...] = ()
    near: float | None = None  # share of the test images near the threshold; None: its interval is not known
    curve: tuple[tuple[float, float, float], ...] = ()  # of pixels: false-positive rate, recall, mean region overlap

    @property
    def method(self) -> str:
        """What tables have a column or a row of: the given model, or the backbone."""
        return self.model or self.backbone

    @property
    def label(self) -> str:
        """Name it in a sentence: "bottle (resnet18, seed 0)"."""
        return evaluation_label(self.category, self.backbone, self.seed, self.model)

    @property
    def key(self) -> EvaluationKey:
        """What tells it from the others of a benchmark."""
        return self.backbone, self.seed, self.category


@dataclass(frozen=True)
class Failure:
    """An evaluation that gave no result."""

    backbone: str
    seed: int
    category: str
    error: str  # one or two sentences
    traceback: str | None  # of a bug
    model: str = ""  # the name of a model that was given

    @property
    def label(self) -> str:
        """Name it in a sentence."""
        return evaluation_label(self.category, self.backbone, self.seed, self.model)


def evaluation_label(category: str, backbone: str, seed: int, model: str = "") -> str:
    """Name an evaluation in a sentence: "bottle (resnet18, seed 0)", "bottle (a.safetensors)"."""
    return f"{category} ({model or f'{backbone}, seed {seed}'})"


@dataclass(frozen=True)
class Difference:
    """How far two models' figures lie apart on the same images, and how much of that may be chance."""

    category: str  # or "average"
    metric: str  # "image_auroc", "aupro", "recall" or "fpr", the last two at each model's own threshold
    first: str  # the models' names
    second: str
    value: float  # the second's figure less the first's
    low: float  # 95 % interval, by drawing the test images again
    high: float

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Results:
    """A benchmark's evaluations so far."""

    dataset: str  # "MVTec AD", or a folder's name and a slash
    config: FitConfig | None  # of all evaluations; its backbone and seed are the first one's; None: models were given
    evaluations: tuple[Evaluation, ...]
    failures: tuple[Failure, ...]
    versions: dict[str, str]
    differences: tuple[Difference, ...] = ()  # of models that were given

    @property
    def methods(self) -> list[str]:
        """All backbones, or models that were given, in the order of their first evaluation."""
        return list(dict.fromkeys(each.method for each in self.evaluations))

    def weights(self, method: str) -> str:
        """Say where the weights of a method's backbone came from."""
        return ", ".join(dict.fromkeys(each.weights for each in self.evaluations if each.method == method))

    @property
    def categories(self) -> list[str]:
        """All categories, sorted; those that failed too."""
        return sorted({each.category for each in self.evaluations} | {failure.category for failure in self.failures})


@dataclass(frozen=True)
class Figure:
    """A mean over seeds and how far they lie from it."""

    mean: float
    spread: float | None  # standard deviation; None with one seed


def figure(results: Results, method: str, category: str, field: str) -> Figure | None:
    """One field of the evaluations of a method on a category, over its seeds. None if it is not defined."""
    values = [getattr(r, field) for r in results.evaluations if (r.method, r.category) == (method, category)]
    values = [value for value in values if value is not None]
    return Figure(fmean(values), stdev(values) if len(values) > 1 else None) if values else None


def average(results: Results, method: str, field: str) -> Figure | None:
    """The unweighted mean over categories, and how far the seeds' own averages spread."""
    evaluations = [
        evaluation
        for evaluation in results.evaluations
        if evaluation.method == method and getattr(evaluation, field) is not None
    ]
    categories = {evaluation.category for evaluation in evaluations}
    means = [
        fmean(getattr(evaluation, field) for evaluation in evaluations if evaluation.category == category)
        for category in categories
    ]
    by_seed = {
        evaluation.seed: [getattr(each, field) for each in evaluations if each.seed == evaluation.seed]
        for evaluation in evaluations
    }
    seeds = [fmean(values) for values in by_seed.values() if len(values) == len(categories)]  # others lack a category
    return Figure(fmean(means), stdev(seeds) if len(seeds) > 1 else None) if means else None


def versions_text(versions: dict[str, str]) -> str:
    """Return the versions that figures depend on most as an evaluation keeps them."""
    return ", ".join(f"{name} {versions[name]}" for name in ("cfa", "torch", "timm") if name in versions)
