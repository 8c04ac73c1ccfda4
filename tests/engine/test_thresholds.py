"""Thresholds from held-out good images: order statistics, their uncertainty, and recalibration."""

from __future__ import annotations

import numpy as np
import pytest

from cfa_cli.engine.thresholds import choose_threshold, normalize, recalibrate, set_thresholds
from cfa_cli.errors import UsageError

SCORES = [float(score) for score in range(1, 20)]  # 19 images: each gap holds 1/20 of future good images


@pytest.mark.parametrize(
    ("max_fpr", "expected"),
    [(0.05, 19), (0.1, 18), (0.149, 18), (0.15, 17), (0.5, 10), (0.95, 1), (0.99, 1), (0.01, 19), (1 - 1e-12, 1)],
)
def test_thresholds_by_hand(max_fpr, expected):
    shuffled = np.random.default_rng(0).permutation(SCORES)
    assert choose_threshold(shuffled, max_fpr).value == expected


def test_one_image_gives_a_threshold_that_nobody_should_trust():
    found = choose_threshold([2.5], 0.05)
    assert found.value == 2.5
    assert (found.fpr_low, found.fpr_high) == pytest.approx((0.05, 0.95))  # uniform: one score says next to nothing


@pytest.mark.parametrize(("n", "max_fpr"), [(19, 0.1), (40, 0.05), (7, 0.5)])
def test_rate_and_interval_hold_in_a_simulation(n, max_fpr):
    """Draw many hold-outs from a known distribution: how many good images lie over each threshold is then exact."""
    rng = np.random.default_rng(n)
    rates = []
    for scores in rng.exponential(size=(4000, n)):
        found = choose_threshold(scores, max_fpr)
        rates.append(np.exp(-found.value))  # P(score > t) of the exponential distribution
    assert np.mean(rates) <= max_fpr * 1.03
    assert np.mean(rates) > max_fpr - 1 / (n + 1)  # no stricter than need be
    assert (np.quantile(rates, 0.05), np.quantile(rates, 0.95)) == pytest.approx(
        (found.fpr_low, found.fpr_high), abs=0.015
    )


@pytest.mark.parametrize(("n", "max_fpr"), [(60, 0.05), (100, 0.1), (13, 0.5), (30, 0.8)])
def test_the_interval_of_the_threshold_holds_in_a_simulation(n, max_fpr):
    """The score that `max_fpr` of all good ones lie over is known here: each end is on its wrong side 1 in 20 times."""
    rng = np.random.default_rng(n)
    true = -np.log(max_fpr)  # of the exponential distribution
    found = [choose_threshold(scores, max_fpr) for scores in rng.exponential(size=(4000, n))]
    assert all(one.low <= one.value <= one.high for one in found)
    assert np.mean([one.low > true for one in found]) < 0.06
    assert np.mean([one.high < true for one in found]) < 0.06
    # The ends are not further away than they need to be: one rank closer, each would be wrong more than 1 in 20 times.
    closer = {"low": [], "high": []}
    for scores, one in zip(np.sort(np.random.default_rng(n).exponential(size=(4000, n))), found, strict=True):
        ordered = scores.tolist()
        closer["low"].append(ordered[ordered.index(one.low) + 1] > true)
        closer["high"].append(ordered[ordered.index(one.high) - 1] < true)
    assert np.mean(closer["low"]) > 0.045
    assert np.mean(closer["high"]) > 0.045


def test_the_interval_of_few_images_by_hand():
    # Of 19 scores, 17 or fewer lie below the 95 % quantile with P = 1 - 0.95^19 - 19 * 0.05 * 0.95^18 = 0.245, 16 or
    # fewer with 0.067, 15 or fewer with 0.013: the 16th is the lower end. All 19 lie below it with 0.377: there is no
    # upper end among them, and 19 / 16 above the threshold stands in for it.
    found = choose_threshold(SCORES, 0.05)
    assert (found.low, found.high) == (16, pytest.approx(19 * 19 / 16))
    rare = choose_threshold(SCORES, 0.95)  # the mirror image: no lower end
    assert (rare.high, rare.low) == (4, pytest.approx(1 / 4))
    assert (choose_threshold([2.5], 0.2).low, choose_threshold([2.5], 0.2).high) == (None, None)


def test_a_given_threshold_has_no_interval():
    estimated = set_thresholds([1.0, 2.0, 3.0, 4.0], [np.full((2, 2), score) for score in (1, 2, 3, 4)], 0.25)
    assert [estimated.is_near(score) for score in (estimated.threshold_low / 2, 4.0)] == [False, True]
    given = recalibrate(estimated, threshold=3.5)
    assert (given.threshold_low, given.threshold_high, given.is_near(3.5)) == (None, None, None)
    again = recalibrate(given, max_fpr=0.25)
    assert (again.threshold_low, again.threshold_high) == (estimated.threshold_low, estimated.threshold_high)


def test_a_higher_rate_never_raises_the_threshold():
    rng = np.random.default_rng(1)
    for n in (1, 2, 5, 23, 100):
        scores = rng.normal(5, 1, n)
        values = [choose_threshold(scores, rate).value for rate in np.linspace(0.001, 0.999, 200)]
        assert values == sorted(values, reverse=True)
        assert set(values) <= set(scores)


@pytest.mark.parametrize("max_fpr", [0, 1, -0.1, 1.5, float("nan")])
def test_rates_out_of_range(max_fpr):
    with pytest.raises(UsageError, match="--max-fpr"):
        choose_threshold(SCORES, max_fpr)


def make_maps():
    """Three maps whose medians are 1, 2 and 3, and whose maxima are 10, 20 and 30."""
    maps = [np.full((5, 7), number, np.float32) for number in (1, 2, 3)]
    for number, score_map in enumerate(maps, start=1):
        score_map[2, 3] = 10 * number
    return maps


def test_a_calibration_by_hand():
    found = set_thresholds([0.3, 0.1, 0.2], make_maps(), max_fpr=0.5)
    assert found.holdout_scores == (0.1, 0.2, 0.3)
    assert found.holdout_peaks == (20, 30, 10)  # of the same images
    assert (found.threshold, found.pixel_threshold) == (0.2, 20)  # the 2nd of 3: each gap holds a quarter
    assert found.extent_threshold == 2  # of 3 x 35 pixels, a half: 34 times 1, 34 times 2, 34 times 3, and the maxima
    assert (found.display_low, found.display_high) == (2, 38)  # the middle is the pixel threshold
    assert found.max_fpr == 0.5
    assert 0 < found.fpr_low < 0.5 < found.fpr_high < 1


def test_images_without_any_distance_still_give_a_scale():
    found = set_thresholds([0.0, 0.0], [np.zeros((4, 4), np.float32)] * 2, 0.05)
    assert found.threshold > 0
    assert found.display_low < found.display_high


def test_another_rate_is_what_calibrating_with_it_gives():
    rng = np.random.default_rng(2)
    maps = [rng.random((4, 4)).astype(np.float32) for _ in range(30)]
    scores = [float(m.max()) for m in maps]
    first, wanted = set_thresholds(scores, maps, 0.05), set_thresholds(scores, maps, 0.3)
    again = recalibrate(first, max_fpr=0.3)
    for name in ("max_fpr", "threshold", "pixel_threshold", "fpr_low", "fpr_high", "holdout_scores", "holdout_peaks"):
        assert getattr(again, name) == getattr(wanted, name)
    # One colour scale for all images of a model, whatever the threshold.
    assert (again.display_low, again.display_high) == (first.display_low, first.display_high)
    assert recalibrate(first) == first


@pytest.mark.parametrize("max_fpr", [0.02, 0.05, 0.3])
def test_the_rate_holds_for_images_and_for_pixels(max_fpr):
    """At most this share of good images has a region, and about this share of good pixels lies over the extent's."""
    rng = np.random.default_rng(3)
    maps = [rng.gamma(4, size=(32, 32)).astype(np.float32) for _ in range(100)]
    found = set_thresholds([float(m.max()) for m in maps], maps, max_fpr)
    assert np.mean([(m > found.pixel_threshold).any() for m in maps]) <= max_fpr
    new = rng.gamma(4, size=(100, 32, 32))
    assert np.mean(new > found.extent_threshold) == pytest.approx(max_fpr, rel=0.05)
    assert found.extent_threshold < found.pixel_threshold
    again = recalibrate(found, threshold=2 * found.threshold)
    assert again.extent_threshold == 2 * found.extent_threshold
    for rate in (0.001, 0.9):
        again = recalibrate(found, max_fpr=rate)
        assert again.extent_threshold == min(found.extent_threshold, again.pixel_threshold)


def test_a_fixed_threshold():
    first = set_thresholds(SCORES, [np.full((2, 2), score, np.float32) for score in SCORES], 0.05)
    again = recalibrate(first, threshold=9.5)
    assert again.threshold == 9.5
    assert again.pixel_threshold == first.pixel_threshold / 2  # 19 was the threshold
    assert again.max_fpr == pytest.approx(10 / 19)  # of the held-out images lie over it
    assert again.fpr_low < 10 / 19 < again.fpr_high
    assert (again.display_low, again.display_high) == (first.display_low, first.display_high)
    for extreme in (0.5, 100):
        assert recalibrate(first, threshold=extreme).threshold == extreme
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--threshold"):
            recalibrate(first, threshold=bad)


@pytest.mark.parametrize(
    ("over", "low", "high"),
    [
        (0, 0.0, 1 - 0.05 ** (1 / 20)),  # 0.1391: with this rate, 20 good images in a row have a chance of 5 %
        (20, 0.05 ** (1 / 20), 1.0),
        (1, 1 - 0.95 ** (1 / 20), 0.2161),  # the tables' value: 0.7839^20 + 20 * 0.2161 * 0.7839^19 = 0.05
        (10, 0.3020, 0.6980),
    ],
)
def test_the_interval_of_a_fixed_threshold_by_hand(over, low, high):
    scores = [float(number) for number in range(1, 21)]
    first = set_thresholds(scores, [np.full((2, 2), score, np.float32) for score in scores], 0.05)
    again = recalibrate(first, threshold=20.5 - over)
    assert (again.max_fpr, again.fpr_low, again.fpr_high) == pytest.approx((over / 20, low, high), abs=1e-4)


def test_normalized_scores():
    assert normalize(3.0, 3.0) == 0.5
    assert normalize(0.0, 3.0) == 0
    values = [normalize(score, 3.0) for score in np.linspace(0, 1e4, 1000)]
    assert values == sorted(set(values))
    assert values[-1] < 1
