"""The drift alarm: how often it is false, what it notices, and what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_ind

from cfa_cli.engine.drift import DriftMonitor
from cfa_cli.evidence import HoldoutImages
from cfa_cli.records import ImageStatistics, Prediction, Source
from tests.results.runs import make_bundle

SOURCE = Source(Path("x.png"), "x.png")


def bundle_of(rows, threshold=1e9):
    """A model whose held-out images have these rows: score, brightness, contrast, sharpness."""
    scores, *like = zip(*sorted(map(tuple, rows)), strict=True)
    bundle = make_bundle()
    calibration = replace(bundle.calibration, holdout_scores=scores, threshold=threshold, fpr_high=0.2)
    return replace(bundle, calibration=calibration, holdout=HoldoutImages(*like))


def drift_of(bundle, rows, *, rolling=False):
    monitor = DriftMonitor(bundle, rolling=rolling)
    for score, *like in rows:
        label = "good" if score <= bundle.calibration.threshold else "anomalous"
        statistics = ImageStatistics(64, 64, True, *like)
        monitor.add(Prediction(SOURCE, score, None, 0.0, label, None, statistics=statistics))
    monitor.finish()
    return monitor.drift


def draw(rng, count, spread=0.1, factors=(1, 1, 1, 1)):
    return np.array([2.0, 0.5, 0.2, 0.06]) * rng.lognormal(0, spread, (count, 4)) * factors


@pytest.mark.parametrize("held", [6, 13, 48])
@pytest.mark.parametrize("rolling", [False, True])
def test_at_most_one_run_of_200_images_in_100_is_a_false_alarm(held, rolling):
    rng = np.random.default_rng(held)
    runs = [drift_of(bundle_of(draw(rng, held, 0.3)), draw(rng, 200, 0.3), rolling=rolling) for _ in range(100)]
    assert sum(drift is not None for drift in runs) <= 1


@pytest.mark.parametrize(
    ("index", "factor", "words"),
    [(1, 1.15, "brighter by"), (1, 0.85, "darker by"), (3, 0.4, "less sharp by"), (2, 1.3, "contrast up by")],
)
def test_what_has_changed_is_noticed_and_said(index, factor, words):
    rng = np.random.default_rng(0)
    held, before, after = (np.array(draw(rng, count, 0.04)) for count in (20, 60, 300))
    after[:, index] *= factor
    change = np.exp(np.log(after[:, index]).mean() - np.log(held[:, index]).mean()) - 1
    drift = drift_of(bundle_of(held), after)
    assert drift.causes == (f"{words} {abs(change):.0%}",)
    assert drift.causes[0] in drift.message
    assert "cfa calibrate MODEL GOOD... --replace --out NEW" in drift.message
    assert "\n" not in drift.message
    assert (drift.images, drift.good) == (300, 300)
    drift = drift_of(bundle_of(held), np.concatenate([before, after]), rolling=True)
    assert 60 < drift.images <= 125  # soon, and once
    assert drift.good == 50


def test_scores_that_rise_are_counted_in_spreads():
    rng = np.random.default_rng(0)
    held, run = draw(rng, 20, 0.04), draw(rng, 300, 0.04, (1.15, 1, 1, 1))
    logs = np.log(held[:, 0])
    spreads = (np.log(run[:, 0]).mean() - logs.mean()) / logs.std(ddof=1)
    assert drift_of(bundle_of(held), run).causes == (f"scores up by {spreads:.1f} spreads",)


def test_the_test_is_welchs():
    """With half as many images as are held out, the alarm comes where scipy's p falls below 1 in 6,400."""
    rng = np.random.default_rng(1)
    held, run = draw(rng, 48, 0.1), draw(rng, 24, 0.3)
    run[:, [0, 2, 3]] = held[::2, [0, 2, 3]]
    noticed = []
    for factor in np.linspace(1, 2, 101):
        changed = run * (1, factor, 1, 1)
        p = ttest_ind(np.log(held[:, 1]), np.log(changed[:, 1]), equal_var=False).pvalue
        noticed.append(drift_of(bundle_of(held), changed) is not None)
        assert noticed[-1] == (p < 0.005 / 8 / 4)
    assert 0 < sum(noticed) < 101


def test_what_is_certain_but_small_is_no_alarm():
    rng = np.random.default_rng(2)
    bundle = bundle_of(draw(rng, 40, 0.001))
    assert drift_of(bundle, draw(rng, 200, 0.001, (1, 1.03, 0.97, 1.04))) is None
    assert drift_of(bundle, draw(rng, 200, 0.001, (1, 1.07, 1, 1))).causes == ("brighter by 7%",)


def test_images_that_score_lower_are_no_alarm():  # those that the model was trained on do
    rng = np.random.default_rng(3)
    assert drift_of(bundle_of(draw(rng, 40)), draw(rng, 200, 0.1, (0.5, 1, 1, 1))) is None


def test_images_over_the_threshold_are_compared_with_nothing_unless_nearly_all_are():
    rng = np.random.default_rng(4)
    bundle, bad = bundle_of(draw(rng, 20), threshold=3.0), draw(rng, 100, 0.01, (10, 1.5, 1, 1))
    assert drift_of(bundle, [*draw(rng, 30), *bad[:60]]) is None
    drift = drift_of(bundle, [*draw(rng, 5), *bad])
    assert drift.causes[0] == "100 of 105 images are over the threshold"
    assert "brighter by 4" in drift.message
    assert drift.good == 5
    assert "unless they are defective" in drift.message


def test_too_few_images_and_models_of_earlier_versions():
    rng = np.random.default_rng(5)
    rows, changed = draw(rng, 20), draw(rng, 19, 0.1, (3, 3, 3, 3))
    assert drift_of(bundle_of(rows), changed) is None
    assert drift_of(bundle_of(rows[:3]), draw(rng, 200, 0.1, (3, 3, 3, 3))) is None
    old = replace(bundle_of(rows), holdout=None)
    (cause,) = drift_of(old, draw(rng, 200, 0.1, (3, 3, 3, 3))).causes
    assert cause.startswith("scores up by")
