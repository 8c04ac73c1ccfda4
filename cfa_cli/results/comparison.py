"""Tables of models that were given: side by side, what each threshold does, and which differences are beyond chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cfa_cli.intervals import clopper_pearson
from cfa_cli.results.benchmark import METRICS, Difference, Evaluation, ImageScore, KindFigures, Results, average
from cfa_cli.results.table import EMPTY, Table, figure_text

LEVEL = 0.95  # of all intervals here
_FALSE_ALARMS = (
    0.0,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
)  # shares of good images that the table of thresholds has rows for
_DIFFERENCES = {**METRICS, "fpr": "false alarms @t", "recall": "recall @t"}


def side_by_side(results: Results) -> list[Table]:
    """Return a table of each category, a row a model, and one of their averages over several categories."""
    header = ("model", *METRICS.values(), "false alarms @t", "recall @t", "threshold t", "ms/image")
    note = (
        "@t: at the model's own threshold, which good images set at its fit; of how many, and the 95 % interval "
        "(Clopper-Pearson)."
    )
    found = []
    for category in results.categories:
        chosen = [each for each in results.evaluations if each.category == category]
        rows = tuple(
            (
                each.method,
                *(figure_text(getattr(each, metric)) for metric in METRICS),
                rate_text(*_over(each.images, each.threshold, anomalous=False)),
                rate_text(*_over(each.images, each.threshold, anomalous=True)),
                f"{each.threshold:.4g}",
                f"{each.milliseconds:.1f}",
            )
            for each in chosen
        )
        if rows:
            found.append(Table(f"{category}: models side by side", header, rows, (note,), has_average=False))
    if len(found) > 1:
        found.append(_averages(results))
    return found


def _averages(results: Results) -> Table:
    fields = (*METRICS, "fpr", "recall")
    rows = tuple(
        (method, *(figure_text(found.mean if (found := average(results, method, field)) else None) for field in fields))
        for method in results.methods
    )
    header = ("model", *METRICS.values(), "false alarms @t", "recall @t")
    return Table(f"average of {len(results.categories)} categories", header, rows, has_average=False)


@dataclass(frozen=True)
class TradeOff:
    """What one threshold does on the test images."""

    threshold: float
    own: bool  # it is the model's own
    false_alarms: int
    caught: int
    kinds: dict[str, int]  # of each kind of defect, images caught


def trade_off(evaluation: Evaluation) -> list[TradeOff]:
    """Return what thresholds do, lowest first: the model's own, and those that a share of the good images lie over."""
    good = sorted((image.score for image in evaluation.images if not image.anomalous), reverse=True)
    thresholds = {evaluation.threshold}
    if good:
        # The n-th highest good score as a threshold lets those above it through: its own image is not over it.
        thresholds |= {good[min(int(share * len(good)), len(good) - 1)] for share in _FALSE_ALARMS}
    rows = []
    for threshold in sorted(thresholds):
        over = Counter(image.kind for image in evaluation.images if image.anomalous and image.score > threshold)
        rows.append(
            TradeOff(
                threshold,
                threshold == evaluation.threshold,
                sum(score > threshold for score in good),
                over.total(),
                dict(over),
            )
        )
    return rows


def threshold_table(evaluation: Evaluation) -> Table:
    """Return the table threshold -> false alarms, defects caught, of each kind."""
    kinds = {kind.kind: kind.images for kind in evaluation.kinds}
    several = kinds if len(kinds) > 1 else {}
    rows = tuple(
        (
            f"{row.threshold:.4g}" + (" (own)" if row.own else ""),
            rate_text(row.false_alarms, evaluation.test_good),
            rate_text(row.caught, evaluation.test_anomalous),
            *(f"{row.kinds.get(kind, 0)}/{images}" for kind, images in several.items()),
        )
        for row in trade_off(evaluation)
    )
    return Table(
        f"{evaluation.label}: what each threshold does",
        ("threshold", "false alarms", "defects caught", *several),
        rows,
        ("A threshold that is chosen by these images does better on them than on others.",),
        has_average=False,
    )


def kinds_table(evaluation: Evaluation) -> Table:
    """Return a row a kind of defect: how many are caught at the model's threshold, and how well they rank."""

    def row(kind: KindFigures) -> tuple[str, ...]:
        rate = rate_text(kind.caught, kind.images)
        return kind.kind, rate, figure_text(kind.image_auroc), figure_text(kind.aupro)

    header = ("kind of defect", "caught @t", "image AUROC against good", "AUPRO")
    return Table(f"{evaluation.label}: by kind", header, tuple(map(row, evaluation.kinds)), has_average=False)


def differences_table(differences: Sequence[Difference]) -> Table:
    """Return a row a pair of models, category and metric."""

    def row(each: Difference) -> tuple[str, ...]:
        return (
            f"{each.second} less {each.first}",
            each.category,
            _DIFFERENCES[each.metric],
            f"{each.value:+.3f}",
            f"{each.low:+.3f} to {each.high:+.3f}",
            "beyond chance" if each.beyond_chance else "may be chance",
        )

    return Table(
        "Differences",
        ("models", "category", "figure", "difference", "95% interval", "verdict"),
        tuple(map(row, differences)),
        ("Intervals: the same test images drawn again for both models, good and defective ones apart, 2,000 times.",),
        has_average=False,
    )


def rate_text(count: int, total: int) -> str:
    """Write a counted rate with its interval: "3/60 = 5.0 % (1.0 to 13.9)"."""
    if not total:
        return EMPTY
    low, high = clopper_pearson(count, total, LEVEL)
    return f"{count}/{total} = {100 * count / total:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _over(images: Sequence[ImageScore], threshold: float, *, anomalous: bool) -> tuple[int, int]:
    chosen = [image.score > threshold for image in images if image.anomalous == anomalous]
    return sum(chosen), len(chosen)
