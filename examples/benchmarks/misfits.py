"""How often images are said to be unlike the training images: those of the product itself, and others.

python examples/benchmarks/misfits.py DATA    DATA holds data sets in MVTec's layout, a folder each
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from cfa_cli.data.images import read_image
from cfa_cli.data.inputs import find_images
from cfa_cli.data.misfits import find_misfits
from cfa_cli.data.statistics import measure, summarise
from cfa_cli.records import ImageStatistics, TrainingImages

THUMBNAIL = (40, 64)  # width, height
FEW = 20  # training images, for the last column but one
DRAWS = 20


def main(root: Path) -> None:
    """Print the table: in each cell, how many images are flagged of how many."""
    sets = sorted(path for path in root.iterdir() if (path / "train/good").is_dir())
    train = {path.name: [measure(read_image(image)) for image in find_images(path / "train/good")] for path in sets}
    models = {name: summarise(images, 8) for name, images in train.items()}
    good = {path.name: [read_image(image) for image in find_images(path / "test/good")] for path in sets}
    print("| training images | test/good | test, defects | other products | thumbnails | test/good, 20 images |")
    print("|---|---|---|---|---|---|")
    for path in sets:
        name, model = path.name, models[path.name]
        defects = [image for image in find_images(path / "test") if image.parent.name != "good"]
        small = [cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA) for image in good[name]]
        own = [measure(image) for image in good[name]]
        cells = [
            count(own, model),
            count([measure(read_image(image)) for image in defects], model),
            count([measure(image) for other in sets if other != path for image in good[other.name][:10]], model),
            count([measure(image) for image in small], model),
            few(train[name], own),
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def count(images: list[ImageStatistics], model: TrainingImages) -> str:
    """How many of the images are unlike the training images."""
    return f"{sum(any(find_misfits(image, model)) for image in images)} of {len(images)}"


def few(train: list[ImageStatistics], test: list[ImageStatistics]) -> str:
    """The same in per cent for models of few training images, over several draws."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        model = summarise([train[index] for index in rng.permutation(len(train))[:FEW]], 8)
        found += [any(find_misfits(image, model)) for image in test]
    return f"{100 * np.mean(found):.1f} %"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
