"""The metrics against hand-computed cases, a slow plain version, scikit-learn, and figures of public libraries."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from cfa_cli.engine.metrics import CurveMetrics, PixelMetrics, ThresholdMetrics, image_metrics, threshold_metrics
from cfa_cli.errors import InputError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text())


def measure(maps, masks) -> CurveMetrics:
    metrics = PixelMetrics()
    for score_map, mask in zip(maps, masks, strict=True):
        metrics.update(np.asarray(score_map, np.float32), None if mask is None else np.asarray(mask, np.uint8))
    return metrics.compute()


def slow_regions(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """8-connected regions by flood fill."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        pending, region = [left.pop()], set()
        while pending:
            y, x = pending.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            pending += near
        regions.append(region)
    return regions


def slow(maps, masks, limit: float = 0.3) -> tuple[float, float, float]:
    """AUROC, F1-max and AUPRO by their definitions, one threshold after the other."""
    good = np.concatenate([m[k == 0] for m, k in zip(maps, masks, strict=True)])
    bad = np.concatenate([m[k != 0] for m, k in zip(maps, masks, strict=True)])
    auroc = np.mean((bad[:, None] > good).astype(float) + 0.5 * (bad[:, None] == good))
    regions = [[m[p] for p in r] for m, k in zip(maps, masks, strict=True) for r in slow_regions(k)]
    best, points = 0.0, [(0.0, 0.0)]
    for threshold in sorted({*good.tolist(), *bad.tolist()}, reverse=True):
        false, true = int((good >= threshold).sum()), int((bad >= threshold).sum())
        best = max(best, 2 * true / (2 * true + false + len(bad) - true))
        points.append((false / len(good), float(np.mean([np.mean(np.array(r) >= threshold) for r in regions]))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit:
            end = min(x1, limit)
            area += (end - x0) * (y0 + (y0 + (y1 - y0) * (end - x0) / (x1 - x0) if x1 > x0 else y1)) / 2
    return float(auroc), best, area / limit


@pytest.mark.parametrize("case", GOLDEN["image_cases"], ids=lambda case: case["case"])
def test_the_public_libraries_figures_of_images(case):
    result, expected = image_metrics(np.array(case["scores_times_256"]) / 256, case["labels"]), case["expected"]
    assert result.auroc == pytest.approx(expected["auroc"], abs=1e-6)
    assert result.f1_max == pytest.approx(expected["f1_max"], abs=1e-6)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["case"])
def test_the_public_libraries_figures_of_pixels(case):
    maps = [np.array(scores) / 256 for scores in case["scores_times_256"]]
    masks = [np.array([list(map(int, row)) for row in mask]) for mask in case["masks"]]
    result, expected = measure(maps, masks), case["expected"]
    assert result.auroc == pytest.approx(expected["auroc"], abs=1e-6)
    assert result.aupro == pytest.approx(expected["aupro"], abs=2e-6)  # theirs is added up in single precision
    assert result.f1_max == pytest.approx(expected["f1_max"], abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["distinct", "ties", "many regions", "spread", "non-square", "infinite", "all defect"])
def test_the_slow_version(kind, seed):
    rng = np.random.default_rng(seed)
    shape = (7, 29) if kind == "non-square" else (14, 13)
    masks = [(rng.random(shape) < density).astype(np.uint8) for density in (0, 0.05, 0.3)]
    if kind != "many regions":
        masks = [np.zeros(shape, np.uint8) for _ in range(3)]
        masks[1][2:5, 3:9] = masks[2][1:3, 1:3] = masks[2][4:7, 8:12] = 255
    if kind == "all defect":
        masks[1][:] = 1
    maps = [(rng.normal(size=shape) + (mask != 0)).astype(np.float32) for mask in masks]
    if kind == "ties":
        maps = [np.round(score_map) for score_map in maps]
    elif kind == "infinite":
        maps = [np.where(np.abs(m) > 1.5, np.float32(np.inf) * np.sign(m), m) for m in maps]
    elif kind == "spread":  # every power of two that float32 has, both signs, and both zeros
        maps = [np.float32(np.sign(m) * 2.0 ** rng.integers(-140, 120, size=shape)) * (m > -1) for m in maps]
    auroc, f1_max, aupro = slow(maps, masks)
    result = measure(maps, masks)
    assert (result.auroc, result.f1_max, result.aupro) == pytest.approx((auroc, f1_max, aupro), abs=1e-12)


@pytest.mark.parametrize("levels", [50, 1 << 24])
def test_scikit_learn_on_more_pixels_than_one_run_holds(levels):
    rng = np.random.default_rng(0)
    mask = np.zeros((1300, 1700), np.uint8)
    mask[100:400, 200:900] = 1
    maps = [(rng.integers(levels, size=m.shape) / levels + 0.1 * m).astype(np.float32) for m in (mask, mask[:200] * 0)]
    result = measure(maps, [mask, None])
    truth, scores = np.concatenate([mask.ravel(), mask[:200].ravel() * 0]), np.concatenate([m.ravel() for m in maps])
    precision, recall, _ = precision_recall_curve(truth, scores)
    assert result.auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert result.f1_max == pytest.approx(np.max(2 * precision * recall / (precision + recall)), abs=1e-12)


def test_aupro_by_hand():
    # Two regions, of one and of four pixels, and ten defect-free pixels: the small one is found first, then two
    # false positives come (FPR 0.2), then the large one, then another two at once (FPR 0.4).
    # Overlap 0.5 up to FPR 0.2, then 1.0 up to the limit: (0.2 * 0.5 + 0.1 * 1) / 0.3.
    mask = np.array([[1, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    scores = np.array([[9, 8, 6, 6, 5], [8, 1, 6, 6, 5], [1, 1, 1, 1, 1]])
    assert measure([scores], [mask]).aupro == pytest.approx(2 / 3, abs=1e-15)


def test_aupro_is_interpolated_at_the_limit():
    # One step from (FPR 0, overlap 0) to (0.6, 1): at the limit 0.3 the overlap is 0.5, the area's mean 0.25.
    mask = np.array([[1, 0, 0, 0, 0, 0]])
    scores = np.array([[5, 5, 5, 5, 1, 1]])
    assert measure([scores], [mask]).aupro == pytest.approx(0.25, abs=1e-15)


def test_regions_touch_at_corners():
    # Joined at a corner they are one region of which half is found; taken apart, one of two is found. The third
    # region tells them from each other: (1/2 + 1) / 2 against (1 + 0 + 1) / 3.
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 1]])
    scores = np.array([[9, 5, 5, 5], [1, 1, 5, 9]])
    assert measure([scores], [mask]).aupro == pytest.approx(0.75, abs=1e-15)


def test_infinite_scores_rank_and_nan_is_refused():
    mask = np.array([[1, 1, 0, 0]])
    assert measure([np.array([[np.inf, 2, 1, -np.inf]])], [mask]) == CurveMetrics(1.0, 1.0, 1.0)
    assert measure([np.array([[-np.inf, -np.inf, 1, np.inf]])], [mask]).auroc == 0.0
    with pytest.raises(InputError, match="NaN"):
        measure([np.array([[1.0, np.nan]])], [None])
    with pytest.raises(InputError, match="NaN"):
        image_metrics([0.0, float("nan")], [False, True])


def test_both_zeros_are_one_score():
    assert measure([np.array([[-0.0, 0.0]])], [np.array([[1, 0]])]).auroc == 0.5


def test_one_kind_of_pixels_alone():
    scores = np.arange(6).reshape(2, 3)
    assert measure([scores], [None]) == measure([scores], [np.zeros((2, 3))]) == CurveMetrics(None, None, None)
    assert measure([scores], [np.ones((2, 3))]) == CurveMetrics(auroc=None, f1_max=1.0, aupro=None)
    assert measure([], []) == CurveMetrics(None, None, None)


def test_computing_early_changes_nothing():
    metrics = PixelMetrics()
    mask = np.array([[1, 0, 0]], np.uint8)
    metrics.update(np.array([[3, 1, 2]], np.float32), mask)
    assert metrics.compute().auroc == 1.0
    metrics.update(np.array([[0, 5, 5]], np.float32), mask)
    assert metrics.compute().auroc == pytest.approx(2 / 8)


def test_a_mask_of_another_size():
    with pytest.raises(InputError, match=r"\(4, 4\)"):
        PixelMetrics().update(np.zeros((3, 4), np.float32), np.zeros((4, 4), np.uint8))


def test_images_by_hand():
    # Pairs (anomalous, good): 4 over 3, 1, 3 tied with 3, over 1: 3.5 of 4. F1 at >= 3: 2 * 2 / (2 * 2 + 1).
    assert image_metrics([3, 4, 3, 1], [True, True, False, False]) == CurveMetrics(
        auroc=3.5 / 4, f1_max=0.8, aupro=None
    )


def test_images_of_one_kind_alone_and_infinite_scores():
    assert image_metrics([], []) == image_metrics([1, 2], [False, False]) == CurveMetrics(None, None, None)
    assert image_metrics([1, 2], [True, True]) == CurveMetrics(auroc=None, f1_max=1.0, aupro=None)
    infinite = [-np.inf, np.inf, 3, np.inf]  # one good image of two ties with the one that is found first
    assert image_metrics(infinite, [False, False, True, True]).auroc == (0.5 + 1 + 0 + 1) / 4
    with pytest.raises(InputError, match="1 image scores for 2 labels"):
        image_metrics([1.0], [False, True])


@pytest.mark.parametrize("seed", range(3))
def test_images_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels = rng.random(200) < 0.7
    scores = np.round(rng.normal(size=200) + labels, 1)
    result = image_metrics(scores, labels)
    precision, recall, _ = precision_recall_curve(labels, scores)
    assert result.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert result.f1_max == pytest.approx(np.max(2 * precision * recall / (precision + recall)), abs=1e-12)


def test_what_a_threshold_does():
    # Over 2: one of four good images, two of three anomalous ones; a score at the threshold is good.
    scores, labels = [0, 2, 1, 3, 2, 4, 5], [False] * 4 + [True] * 3
    assert threshold_metrics(scores, labels, 2.0) == ThresholdMetrics(fpr=0.25, recall=2 / 3, f1=2 * 2 / (3 + 2 + 1))
    assert threshold_metrics([1, 3], [False, False], 2.0) == ThresholdMetrics(fpr=0.5, recall=None, f1=None)
    assert threshold_metrics([1, 3], [True, True], 2.0) == ThresholdMetrics(fpr=None, recall=0.5, f1=2 / 3)


def test_memory_is_bounded():
    """16 million pixels, spread over many powers of two, take less than their own four bytes each."""
    rng = np.random.default_rng(0)
    mask = np.zeros((1024, 1024), np.uint8)
    mask[:100] = 1
    noise = (2.0 ** rng.uniform(-15, 15, size=mask.shape)).astype(np.float32)
    metrics = PixelMetrics()
    tracemalloc.start()
    try:
        for _ in range(16):
            metrics.update(noise, mask)
        kept, _ = tracemalloc.get_traced_memory()
        metrics.compute()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 3 * 16 * mask.size
    assert peak < 3 * 16 * mask.size + 100e6  # and a working space that does not grow


def test_kinds_are_measured_by_themselves_and_curves_lie_on_the_whole_one():
    rng = np.random.default_rng(0)
    masks = [np.zeros((30, 40), np.uint8) for _ in range(6)]
    for number, mask in enumerate(masks[2:]):
        mask[3 : 8 + number, 5 : 9 + 3 * number] = 1
    maps = [rng.normal(size=mask.shape) + 2 * mask for mask in masks]
    kinds = ["good", "good", "dent", "dent", "crack", "crack"]
    metrics = PixelMetrics()
    for score_map, mask, kind in zip(maps, masks, kinds, strict=True):
        metrics.update(score_map, mask, kind)
    assert metrics.compute() == measure(maps, masks)
    assert metrics.compute(["good", "crack"]) == measure(maps[:2] + maps[4:], masks[:2] + masks[4:])
    assert metrics.compute(["nothing"]) == CurveMetrics(None, None, None)
    points = metrics.compute().points
    truth, scores = np.concatenate(masks).ravel(), np.concatenate(maps).ravel().astype(np.float32)
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    for x, y, overlap in points:
        assert np.hypot(false - x, true - y).min() < 1e-5
        assert 0 <= overlap <= 1
    assert (points[0], points[-1]) == ((0, 0, 0), (1, 1, 1))
    assert len(points) <= 100
