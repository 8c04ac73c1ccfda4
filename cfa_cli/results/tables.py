"""A benchmark's tables, as the field prints them, beside the published figures where these compare."""

from __future__ import annotations

import dataclasses
from statistics import fmean

from cfa_cli.config import PRESETS, FitConfig
from cfa_cli.results.benchmark import METRICS, Figure, Results, average, figure, versions_text
from cfa_cli.results.comparison import differences_table, side_by_side, threshold_table
from cfa_cli.results.publications import comparable, why_not_comparable
from cfa_cli.results.table import EMPTY, Table

_RECIPE = [  # the options that decide what is trained; the size, the weights and the backbone are named anyway
    field.name
    for field in dataclasses.fields(FitConfig)
    if field.name not in ("backbone", "weights", "size", "max_fpr", "seed", "device", "precision")
]


def tables(results: Results, threshold_report: bool = False) -> list[Table]:
    """All tables: an overview of each backbone, then a table of each metric where there is something to compare.

    `threshold_report` adds what the calibrated threshold does on the test images. Models that were given stand side by
    side.
    """
    if results.config is None:
        found = side_by_side(results)
        found += [differences_table(results.differences)] if results.differences else []
        if threshold_report:
            found += [threshold_table(each) for each in results.evaluations]
        return found
    found = [_overview(results, method) for method in results.methods]
    if threshold_report:
        found += [_threshold_report(results, method) for method in results.methods]
    if len(results.methods) > 1 or any(comparable(results, method) for method in results.methods):
        found += [_comparison(results, metric) for metric in METRICS]
    return found


def remarks(results: Results) -> list[str]:
    """What a reader has to know about the figures: why no published ones stand beside them, warnings, failures."""
    reasons = [why_not_comparable(results, each) for each in results.methods]
    lines = list(dict.fromkeys(filter(None, reasons)))
    warnings: dict[str, list[str]] = {}
    for each in results.evaluations:
        for warning in each.warnings:
            warnings.setdefault(warning, []).append(each.category if results.config else each.label)
    for warning, categories in warnings.items():
        names = list(dict.fromkeys(categories))
        everywhere = len(names) == len(results.categories)
        lines.append(warning if everywhere else f"{', '.join(names)}: {warning}")
    lines += _other_versions(results)
    lines += [f"{f.label} failed: {f.error}" for f in results.failures]
    return lines


def _other_versions(results: Results) -> list[str]:
    """Name each evaluation that an earlier session computed with other versions than this one's."""
    ours = versions_text(results.versions)
    return [
        f"{each.label} was computed with {each.versions}, not with {ours}."
        for each in results.evaluations
        if each.versions not in ("", ours)
    ]


def markdown(results: Results) -> str:
    """results.md: the tables, the remarks, the versions, and the commands that repeat it."""
    lines = [f"# {results.dataset}: results of `cfa benchmark`", ""]
    for table in tables(results, threshold_report=True):
        lines += table.markdown()
    lines += [f"- {remark}" for remark in remarks(results)]
    lines += ["", "Metrics are exact, over all pixels at the masks' own resolution; averages are unweighted means."]
    lines += ["Versions: " + ", ".join(f"{name} {text}" for name, text in results.versions.items()) + "."]
    commands = dict.fromkeys(each.command for each in results.evaluations if each.command)
    lines += ["", "To repeat it:", "", *(f"    {command}" for command in commands)] if commands else []
    return "\n".join(lines) + "\n"


def _overview(results: Results, method: str) -> Table:
    """The five metrics, what the calibrated threshold does, and what it costs."""
    columns = {**METRICS, "fpr": "FPR @t", "recall": "recall @t", "f1": "F1 @t"}
    columns |= {"fit_seconds": "fit, s", "milliseconds": "ms/image"}
    chosen = [each for each in results.evaluations if each.method == method]
    memory = [each.peak_memory_mb for each in chosen if each.peak_memory_mb]
    seeds = {each.seed for each in chosen}
    notes = [
        f"Recipe: {_recipe(results)}.",
        "@t: at the calibrated threshold, which comes from good training images alone.",
    ]
    if len(seeds) > 1:
        notes.append(f"Means ± standard deviations over {len(seeds)} seeds.")
    if memory:
        notes.append(f"Peak memory: {max(memory):.0f} MB.")
    return _table(f"{method} ({results.weights(method)})", results, method, columns, tuple(notes))


def _recipe(results: Results) -> str:
    """The input's size, the preset that is nearest, and where the evaluations differ from it."""

    def differences(preset: FitConfig) -> list[str]:
        pairs = [(name, getattr(results.config, name), getattr(preset, name)) for name in _RECIPE]
        return [f"{name} {ours} (not {theirs})" for name, ours, theirs in pairs if ours != theirs]

    name = min(PRESETS, key=lambda name: len(differences(PRESETS[name])))
    different = differences(PRESETS[name])
    sizes = " and ".join(
        f"{width} x {height} px" for height, width in sorted({each.input_size for each in results.evaluations})
    )
    return f"{sizes}, --preset {name}{' but for ' if different else ''}{', '.join(different)}"


def _threshold_report(results: Results, method: str) -> Table:
    columns = {
        "threshold": "threshold",
        "fpr": "FPR",
        "recall": "recall",
        "f1": "F1",
        "near": "near",
        "image_f1max": "F1-max",
    }
    assert results.config is not None
    note = (
        f"The threshold is set on held-out good images, so that it flags at most {100 * results.config.max_fpr:g}% of "
        "good ones. Near: the share of test images in its 90 % interval, where either verdict may be wrong. F1-max is "
        "what the best threshold would give, chosen on the test images."
    )
    return _table(f"{method}: the calibrated threshold on the test images", results, method, columns, (note,))


def _table(title: str, results: Results, method: str, columns: dict[str, str], notes: tuple[str, ...]) -> Table:
    body = [
        (category, *(_text(figure(results, method, category, field), field) for field in columns))
        for category in results.categories
    ]
    last = ("average", *(_text(average(results, method, field), field) for field in columns))
    return Table(title, ("category", *columns.values()), (*body, last), notes)


def _comparison(results: Results, metric: str) -> Table:
    """One metric: a column a backbone, and beside it the published figures and the difference."""
    header, columns, notes = ["category"], [], []
    for method in results.methods:
        ours = {category: figure(results, method, category, metric) for category in results.categories}
        header.append(method)
        columns.append(
            [*(_text(each, metric) for each in ours.values()), _text(average(results, method, metric), metric)]
        )
        for published in comparable(results, method):
            theirs = {
                category: published.figures[category][metric]
                for category in results.categories
                if metric in published.figures.get(category, {})
            }
            if theirs:
                header += [published.heading, "difference"]
                columns += _beside(ours, theirs)
                notes.append(published.note)
    if notes and results.config is not None:
        share = f"{1 - results.config.holdout:.0%} of the good images trained on, the others held out"
        notes.append(f"Ours: {_recipe(results)}; {share}.")
    body = zip([*results.categories, "average"], *columns, strict=True)
    return Table(METRICS[metric], tuple(header), tuple(body), tuple(dict.fromkeys(notes)))


def _beside(ours: dict[str, Figure | None], theirs: dict[str, float]) -> list[list[str]]:
    """Two columns: published, and ours less published; the averages are of the categories that both have."""
    published, difference, both = [], [], []
    for category, mine in ours.items():
        published.append(f"{theirs[category]:.3f}" if category in theirs else EMPTY)
        if mine is not None and category in theirs:
            both.append((mine.mean, theirs[category]))
            difference.append(f"{mine.mean - theirs[category]:+.3f}")
        else:
            difference.append(EMPTY)
    mean = fmean(their for _, their in both) if both else None
    published.append(EMPTY if mean is None else f"{mean:.3f}")
    difference.append(EMPTY if mean is None else f"{fmean(mine for mine, _ in both) - mean:+.3f}")
    return [published, difference]


def _text(found: Figure | None, field: str) -> str:
    if found is None:
        return EMPTY
    if field in ("fit_seconds", "milliseconds"):
        return f"{found.mean:.1f}"
    return f"{found.mean:.3f}" + ("" if found.spread is None else f"±{found.spread:.3f}")
