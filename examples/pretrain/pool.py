"""Keeps drawn images on disk: drawn once, cropped and changed many times while training."""

from __future__ import annotations

import functools
import multiprocessing
from pathlib import Path

import numpy as np
from draw import draw
from numpy.typing import NDArray


def draw_class(seed: int, instances: int, size: int, label: int) -> NDArray[np.uint8]:
    """Draw all images of a class."""
    return np.stack([draw(seed, label, instance, size) for instance in range(instances)])


def open_pool(path: Path, seed: int, classes: int, instances: int, size: int, processes: int) -> NDArray[np.uint8]:
    """Returns the pool (classes, instances, size, size, 3) as a read-only map of its file, drawing it if missing."""
    shape = (classes, instances, size, size, 3)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        images = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        work = functools.partial(draw_class, seed, instances, size)
        with multiprocessing.get_context("spawn").Pool(processes) as workers:
            for label, drawn in enumerate(workers.imap(work, range(classes), chunksize=4)):
                images[label] = drawn
                if label % 50 == 49:
                    print(f"drawn {label + 1} of {classes} classes", flush=True)
        images.flush()
        partial.replace(path)  # a pool that has its final name is complete
    images = np.load(path, mmap_mode="r")
    if images.shape != shape:
        raise SystemExit(f"{path} holds {images.shape}, not {shape}: delete it or name another --pool")
    return images
