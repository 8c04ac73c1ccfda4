"""AUPRO image by image, against the exact one."""

from __future__ import annotations

import numpy as np
import pytest

from cfa_cli.engine.metrics import PixelMetrics
from cfa_cli.engine.region_curves import RegionCurves


def draw(count: int, seed: int = 0):
    """Score maps (40 x 60) and masks: every third image is good, the others have one to three regions."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for number in range(count):
        mask = np.zeros((40, 60), np.uint8)
        for region in range(number % 3 * (1 + number % 2)):
            mask[3 + 9 * region : 8 + 9 * region, 4 + number : 20 + number] = 1
        maps.append((rng.gamma(2, 1, mask.shape) + rng.uniform(0, 3) * mask).astype(np.float32))
        masks.append(mask)
    return maps, masks


def exact(maps, masks) -> float:
    metrics = PixelMetrics()
    for score_map, mask in zip(maps, masks, strict=True):
        metrics.update(score_map, mask)
    return metrics.compute().aupro


def test_images_drawn_again_have_the_aupro_of_the_same_images_put_together():
    maps, masks = draw(20)
    curves = RegionCurves()
    for score_map, mask in zip(maps, masks, strict=True):
        curves.add(score_map, mask)
    weights = np.random.default_rng(1).multinomial(20, np.full(20, 1 / 20), size=5)
    weights[0] = 1
    for row, found in zip(weights, curves.resampled(weights), strict=True):
        drawn = np.repeat(np.arange(20), row)
        assert found == pytest.approx(exact([maps[i] for i in drawn], [masks[i] for i in drawn]), abs=2e-3)


def test_aupro_is_the_mean_of_the_images_by_their_regions():
    maps, masks = draw(20)
    curves = RegionCurves()
    for score_map, mask in zip(maps, masks, strict=True):
        curves.add(score_map, mask)
    of_images = curves.of_images()
    regions = [number % 3 * (1 + number % 2) for number in range(20)]
    assert [value is None for value in of_images] == [count == 0 for count in regions]
    mean = sum((value or 0) * count for value, count in zip(of_images, regions, strict=True)) / sum(regions)
    assert mean == pytest.approx(exact(maps, masks), abs=2e-3)
    best, worst = np.argmax([v or 0 for v in of_images]), np.argmin([1 if v is None else v for v in of_images])
    assert maps[best][masks[best] > 0].mean() > maps[worst][masks[worst] > 0].mean()


def test_only_good_images_and_none():
    curves = RegionCurves()
    assert curves.of_images() == []
    curves.add(np.ones((4, 5), np.float32), None)
    assert curves.of_images() == [None]
