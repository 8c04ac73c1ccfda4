"""A seeded sample of many images, so that a fit's time, memory and disk are bounded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def sample_by_folder(paths: Sequence[Path], count: int, seed: int) -> list[Path]:
    """Draw `count` of `paths`, in their order: of each folder its share, rounded up or down. All, if they are no more.

    >>> sample_by_folder([Path("day/1.png"), Path("day/2.png"), Path("night/3.png"), Path("night/4.png")], 2, seed=0)
    [Path('day/2.png'), Path('night/3.png')]
    """
    if len(paths) <= count:
        return list(paths)
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(paths))
    by_folder = sorted(shuffled.tolist(), key=lambda index: str(paths[index].parent))  # random within each
    step = len(paths) / count
    places = ((np.arange(count) + random.random()) * step).astype(int)  # evenly spaced: folders get their shares
    return [paths[index] for index in sorted(by_folder[place] for place in places)]
