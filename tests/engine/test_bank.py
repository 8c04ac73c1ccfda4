"""The baseline of each position, and that no held-out image has a say in its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cfa_cli.config import PRESETS, FitConfig
from cfa_cli.engine.bank import leave_one_out_baselines, resolve_gamma_c
from cfa_cli.engine.fit import fit


def plain_baseline(scores):
    """Mean plus two deviations, smoothed, 1 on average, as if eight more images were alike everywhere."""
    pattern = gaussian_filter(scores.mean(0), 2.0) + 2 * gaussian_filter(scores.std(0), 2.0)
    return (len(scores) * pattern / pattern.mean() + 8) / (len(scores) + 8)


@pytest.mark.parametrize("count", [2, 7])
def test_each_image_is_judged_by_the_others(count):
    positions = torch.rand(count, 6, 9, generator=torch.Generator().manual_seed(0)) + torch.arange(9)
    everyone, *others = (baseline.numpy() for baseline in leave_one_out_baselines(positions, normalize=True))
    scores = positions.double().numpy()
    np.testing.assert_allclose(everyone, plain_baseline(scores), rtol=1e-5)
    for index, baseline in enumerate(others):
        np.testing.assert_allclose(baseline, plain_baseline(np.delete(scores, index, axis=0)), rtol=1e-5)


def test_a_single_image_and_absolute_scores_leave_all_positions_alike():
    positions = torch.rand(1, 6, 9)
    assert (list(leave_one_out_baselines(positions, normalize=True))[1] == 1).all()
    found = list(leave_one_out_baselines(torch.rand(3, 6, 9), normalize=False))
    assert len(found) == 4
    assert all((baseline == 1).all() for baseline in found)


@pytest.mark.parametrize("grid", [(1, 1), (56, 56), (3137, 1), (64, 64), (128, 49), (750, 1000), (2048, 2048)])
def test_an_automatic_gamma_c_is_the_smallest_that_keeps_3136_centroids(grid):
    positions = grid[0] * grid[1]
    gamma_c = resolve_gamma_c(None, grid)
    assert positions // gamma_c <= 3136
    assert gamma_c == 1 or positions // (gamma_c - 1) > 3136
    assert resolve_gamma_c(7, grid) == 7
    assert PRESETS["paper"].gamma_c == 1


@pytest.mark.parametrize(("gamma_c", "expected"), [(None, 2), (3, 3)])
def test_the_bundle_keeps_the_resolved_gamma_c(good_dir, gamma_c, expected):
    config = FitConfig(weights="embedded", size=(240, 240), epochs=0, gamma_d=16, gamma_c=gamma_c)
    bundle = fit(good_dir, config).bundle
    assert bundle.config.gamma_c == expected
    assert len(bundle.tensors["bank"]) == 3600 // expected
