"""The baseline of each position, and that no held-out image has a say in its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cfa_cli.config import PRESETS, FitConfig
from cfa_cli.engine.bank import count_centroids, leave_one_out_baselines, resolve_gamma_c
from cfa_cli.engine.fit import fit
from cfa_cli.errors import UsageError


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


@pytest.mark.parametrize(("bank", "centroids_a_patch"), [("kmeans", 2), ("mean", 1), ("ema", 1)])
def test_an_automatic_gamma_c_gives_so_many_centroids_a_patch_but_at_most_6272(bank, centroids_a_patch):
    for positions in [*range(1, 7000), 88 * 36, 56 * 56, 750 * 1000, 2048 * 2048]:
        assert count_centroids(FitConfig(bank=bank), (positions, 1)) == min(centroids_a_patch * positions, 6272)
    assert count_centroids(PRESETS["paper"], (64, 64)) == 4096


def test_a_gamma_c_that_is_given_is_kept():
    assert resolve_gamma_c(FitConfig(gamma_c=7), (64, 64)) == 7
    for gamma_c, centroids in {0.25: 16384, 1: 4096, 3: 1365, 1.5: 2730, 4096: 1, 5000: 0}.items():
        assert count_centroids(FitConfig(gamma_c=gamma_c), (64, 64)) == centroids


@pytest.mark.parametrize("bank", ["mean", "ema"])
def test_banks_of_an_image_have_no_more_centroids_than_it_has_patches(bank):
    with pytest.raises(UsageError, match="at most a centroid a patch"):
        FitConfig(bank=bank, gamma_c=0.5)


@pytest.mark.parametrize(("gamma_c", "expected", "centroids"), [(None, 0.5, 1800), (2.5, 2.5, 360)])
def test_the_bundle_keeps_the_resolved_gamma_c(good_dir, gamma_c, expected, centroids):
    config = FitConfig(weights="embedded", size=(240, 240), epochs=0, gamma_d=16, gamma_c=gamma_c)
    bundle = fit(good_dir, config).bundle
    assert bundle.config.gamma_c == expected
    assert len(bundle.tensors["bank"]) == centroids
