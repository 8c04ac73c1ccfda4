"""What is usual at each position, and that no held-out image has a say in its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cfa_cli.engine.bank import usual_for_each


def plain_usual(scores):
    """Mean plus two deviations, smoothed, 1 on average, as if eight more images were alike everywhere."""
    pattern = gaussian_filter(scores.mean(0), 2.0) + 2 * gaussian_filter(scores.std(0), 2.0)
    return (len(scores) * pattern / pattern.mean() + 8) / (len(scores) + 8)


@pytest.mark.parametrize("count", [2, 7])
def test_each_image_is_judged_by_the_others(count):
    positions = torch.rand(count, 6, 9, generator=torch.Generator().manual_seed(0)) + torch.arange(9)
    everyone, *others = (usual.numpy() for usual in usual_for_each(positions, relative=True))
    scores = positions.double().numpy()
    np.testing.assert_allclose(everyone, plain_usual(scores), rtol=1e-5)
    for index, usual in enumerate(others):
        np.testing.assert_allclose(usual, plain_usual(np.delete(scores, index, axis=0)), rtol=1e-5)


def test_a_single_image_and_absolute_scores_leave_all_positions_alike():
    positions = torch.rand(1, 6, 9)
    assert (list(usual_for_each(positions, relative=True))[1] == 1).all()
    found = list(usual_for_each(torch.rand(3, 6, 9), relative=False))
    assert len(found) == 4
    assert all((usual == 1).all() for usual in found)
