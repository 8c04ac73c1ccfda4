"""Small data sets in MVTec's layout, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np


def make_tree(root: Path, categories: Sequence[str], train: int = 8, good: int = 3, bad: int = 3) -> Path:
    """Write noisy grey images (48 x 56 px), and defective ones with a coloured rectangle and its mask."""
    rng = np.random.default_rng(0)
    for category in categories:
        for part, count in (("train/good", train), ("test/good", good), ("test/spot", bad)):
            folder = root / category / part
            folder.mkdir(parents=True)
            for number in range(count):
                image = rng.normal(120, 6, size=(48, 56, 3)).clip(0, 255).astype(np.uint8)
                if part == "test/spot":
                    mask = np.zeros((48, 56), np.uint8)
                    y, x = rng.integers(4, 30, size=2)
                    mask[y : y + 10, x : x + 14] = 255
                    image[mask > 0] = (240, 30 * number, 20)
                    masks = root / category / "ground_truth/spot"
                    masks.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(masks / f"{number:03}_mask.png"), mask)
                cv2.imwrite(str(folder / f"{number:03}.png"), image)
    return root
