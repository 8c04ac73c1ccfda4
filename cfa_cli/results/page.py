"""results.html: a benchmark on one page, which opens from disk without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfa_cli.results.benchmark import Evaluation, Results
from cfa_cli.results.comparison import kinds_table, threshold_table
from cfa_cli.results.pages import templates, write_page
from cfa_cli.results.samples import choose_samples, embedded, sample_path
from cfa_cli.results.tables import remarks, tables

PRO_LIMIT = 0.3  # false-positive rate up to which region overlap is drawn, as AUPRO is integrated
_CURVES_SHOWN = 6  # there are as many colours
_POINTS = 100


def write_results_page(out: Path, results: Results) -> Path:
    """Write `out/results.html`, and return its path. Raises InputError where it cannot be written."""
    commands = dict.fromkeys(each.command for each in results.evaluations if each.command)
    page = (
        templates()
        .get_template("results.html.j2")
        .render(
            title=f"{results.dataset}: results of cfa benchmark",
            tables=tables(results),
            remarks=remarks(results),
            categories=[_category(out, results, name) for name in results.categories],
            machine=results.versions,
            commands=list(commands),
        )
    )
    return write_page(out / "results.html", page)


def _category(out: Path, results: Results, name: str) -> dict[str, Any]:
    """What the page shows of one category: curves of all methods, samples and tables of each; of the first seeds."""
    firsts: dict[str, Evaluation] = {}
    for each in results.evaluations:
        if each.category == name:
            firsts.setdefault(each.method, each)
    shown = list(firsts.values())
    return {
        "name": name,
        "counts": f"{shown[0].test_good} good and {shown[0].test_anomalous} defective images" if shown else "failed",
        "roc": [
            _line(each, points, "image AUROC", each.image_auroc)
            for each in shown[:_CURVES_SHOWN]
            if (points := _roc(each))
        ],
        "pro": [
            _line(each, [(x / PRO_LIMIT, y) for x, _, y in each.curve], "AUPRO", each.aupro)
            for each in shown[:_CURVES_SHOWN]
            if each.curve
        ],
        "methods": [
            {
                "label": each.label,
                "samples": _samples(out, each),
                "tables": [kinds_table(each), threshold_table(each)] if each.images else [],
            }
            for each in shown
        ],
    }


def _line(each: Evaluation, points: Sequence[tuple[float, float]], metric: str, value: float | None) -> dict[str, str]:
    """A curve's points in a box of 100 x 100, whose y axis points down, and its name."""
    return {
        "points": " ".join(f"{100 * x:.1f},{100 - 100 * y:.1f}" for x, y in points),
        "name": f"{each.method}, {metric} " + ("-" if value is None else f"{value:.3f}"),
    }


def _roc(evaluation: Evaluation) -> list[tuple[float, float]]:
    """The share of good images flagged and of defective ones, at every score; a hundred points at most."""
    scores = np.array([image.score for image in evaluation.images])
    bad = np.array([image.anomalous for image in evaluation.images], bool)
    if bad.all() or not bad.any():
        return []
    cuts = np.append(np.unique(scores)[::-1], -np.inf)
    cuts = cuts[np.unique(np.linspace(0, len(cuts) - 1, _POINTS).astype(int))]
    over = scores[None] > cuts[:, None]
    return list(zip(over[:, ~bad].mean(axis=1).tolist(), over[:, bad].mean(axis=1).tolist(), strict=True))


def _samples(out: Path, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The pictures that are there, and what stands above them."""
    found = []
    for sample, place in choose_samples(evaluation.images).items():
        image = evaluation.images[place]
        url = embedded(sample_path(out, evaluation.method, evaluation.seed, evaluation.category, sample), out)
        if url is not None:
            figure = f"score {image.score:.3g}" + ("" if image.pro is None else f", AUPRO {image.pro:.3f}")
            found.append({"sample": sample, "name": image.name, "figure": figure, "url": url})
    return found
