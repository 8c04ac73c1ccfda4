"""Sample results of an evaluation: its best, median and worst defective image are scored once more and drawn."""

from __future__ import annotations

from pathlib import Path

from cfa_cli.data.category import Category
from cfa_cli.data.ignore import IgnoreMasks
from cfa_cli.data.masks import read_mask
from cfa_cli.engine.model import Model
from cfa_cli.engine.scorer import score_sources
from cfa_cli.records import Source
from cfa_cli.results.benchmark import Evaluation
from cfa_cli.results.pictures import write_picture
from cfa_cli.results.samples import choose_samples, draw_sample, sample_path


def write_samples(
    out: Path, category: Category, model: Model, evaluation: Evaluation, ignore: IgnoreMasks | None
) -> None:
    """Write the pictures of an evaluation's samples to the benchmark's folder `out`. Raises InputError."""
    opened = None if ignore is None else model.open_ignore(ignore.path)
    for sample, place in choose_samples(evaluation.images).items():
        chosen = category.test[place]
        source = Source(chosen.path, chosen.path.name)
        (prediction,) = score_sources(model.scorer, [source], model.bundle.calibration, keep_images=True, ignore=opened)
        if prediction.image is None or prediction.score_map is None:
            continue  # it has vanished since it was measured
        mask = None if chosen.mask is None else read_mask(chosen.mask)
        picture = draw_sample(prediction, mask, model.bundle)
        write_picture(sample_path(out, evaluation.method, evaluation.seed, category.name, sample), picture)
