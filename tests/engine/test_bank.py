"""The baseline of each position, and that no held-out image has a say in its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cfa_cli.config import PRESETS, FitConfig
from cfa_cli.engine.bank import count_centroids, leave_one_out_baselines, resolve_gamma_c
from cfa_cli.engine.fit import fit


def plain_baseline(scores):
    """The root of the smoothed mean, 1 on average, as if eight more images were alike everywhere."""
    pattern = gaussian_filter(scores.mean(0), 2.0)
    return np.sqrt((len(scores) * pattern / pattern.mean() + 8) / (len(scores) + 8))


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


def test_an_automatic_gamma_c_gives_as_many_centroids_as_there_are_positions_but_at_most_3136():
    for positions in [*range(1, 7000), 88 * 36, 56 * 56, 750 * 1000, 2048 * 2048]:
        assert count_centroids(None, (positions, 1)) == min(positions, 3136)
    assert count_centroids(PRESETS["paper"].gamma_c, (64, 64)) == 4096


def test_a_gamma_c_that_is_given_is_kept():
    assert resolve_gamma_c(7, (64, 64)) == 7
    assert [count_centroids(gamma_c, (64, 64)) for gamma_c in (1, 3, 1.5, 4096, 5000)] == [4096, 1365, 2730, 1, 0]


@pytest.mark.parametrize(("gamma_c", "expected", "centroids"), [(None, 3600 / 3136, 3136), (2.5, 2.5, 1440)])
def test_the_bundle_keeps_the_resolved_gamma_c(good_dir, gamma_c, expected, centroids):
    config = FitConfig(weights="embedded", size=(240, 240), epochs=0, gamma_d=16, gamma_c=gamma_c)
    bundle = fit(good_dir, config).bundle
    assert bundle.config.gamma_c == expected
    assert len(bundle.tensors["bank"]) == centroids
