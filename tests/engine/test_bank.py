"""The baseline of each position, and that no held-out image has a say in its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cfa_cli.engine.bank import leave_one_out_baselines


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
