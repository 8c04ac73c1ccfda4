"""Large images: what is computed in parts is what the whole gives, and small defects are found in them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from cfa_cli import FitConfig, fit, predict
from cfa_cli.engine import bank
from cfa_cli.engine.bank import build_bank
from cfa_cli.engine.features import FeatureStore
from cfa_cli.model import tiles
from cfa_cli.model.bank import ema_bank
from cfa_cli.model.descriptor import Descriptor

SHAPES = [(3, 12, 10), (4, 6, 5)]


@pytest.fixture
def stored():
    """Feature maps of four images, their descriptors (4, 120, 5), and the descriptor; 120 positions are many."""
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(4, *shape, generator=generator).half().float() for shape in SHAPES]
    torch.manual_seed(0)
    descriptor = Descriptor((3, 4), 5).requires_grad_(False)
    with FeatureStore(SHAPES, capacity=4) as store:
        store.append(levels)
        yield store, descriptor(levels).flatten(1, 2), descriptor


def test_a_large_mean_bank_clusters_the_mean_of_each_position(stored, monkeypatch):
    store, described, descriptor = stored
    monkeypatch.setattr(bank, "MOST_COMPRESSED", 100)
    steps = []
    found = build_bank(store, range(4), descriptor, FitConfig(bank="mean", gamma_c=3), steps.append)
    assert found.shape == (40, 5)
    means = described.mean(0)
    # Each centroid is the mean of means around it, or one of them: nowhere outside, and near to all of them.
    distances = torch.cdist(means, found)
    assert float(distances.min(0).values.max()) < float(torch.pdist(means).median()) / 2
    assert float(distances.min(1).values.mean()) < float(torch.cdist(means, means[::3]).min(1).values.mean())
    assert steps[-1].done == steps[-1].total == 4
    whole = build_bank(store, range(4), descriptor, FitConfig(bank="mean", gamma_c=1), steps.append)
    torch.testing.assert_close(whole, means)


def test_a_large_ema_bank_follows_the_images_in_bands(stored, monkeypatch):
    store, described, descriptor = stored
    monkeypatch.setattr(tiles, "BAND_POSITIONS", 35)
    found = build_bank(store, range(4), descriptor, FitConfig(bank="ema", gamma_c=1), lambda step: None)
    torch.testing.assert_close(found, ema_bank(described[0], ([image] for image in described[1:])))
    monkeypatch.setattr(bank, "MOST_COMPRESSED", 100)
    assert build_bank(store, range(4), descriptor, FitConfig(bank="ema", gamma_c=3), lambda step: None).shape == (40, 5)


def plate(seed, defect=None):
    """A textured plate, 1024 x 1536 px, and on it, if a place (row, column) is given, a square of 10 px."""
    rng = np.random.default_rng(seed)
    image = 0.55 + 0.03 * cv2.GaussianBlur(rng.standard_normal((1024, 1536), dtype=np.float32), (0, 0), 1.5) / 0.19
    image[40:60] *= 0.5
    if defect is not None:
        image[defect[0] - 5 : defect[0] + 5, defect[1] - 5 : defect[1] + 5] *= 0.6
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8)


def test_a_defect_of_ten_px_is_found_in_large_images(tmp_path):
    for seed in range(4):
        cv2.imwrite(str(tmp_path / f"{seed}.png"), plate(seed))
    full = fit(tmp_path, FitConfig(weights="embedded", size="full", gamma_d=4, epochs=0)).bundle
    assert (full.geometry.size, full.tensors["bank"].shape) == ((1024, 1536), (6272, 112))
    good, bad = predict(full, [plate(10), plate(11, defect=(700, 1200))])
    assert bad.score > 1.5 * good.score
    row, column = np.unravel_index(bad.map.argmax(), bad.map.shape)
    assert abs(row - 700) <= 8
    assert abs(column - 1200) <= 8
