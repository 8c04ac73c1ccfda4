"""Put photographs above what cfa marks on them: the README's picture.

python examples/overview.py examples/parts/test maps/overlays examples/overview.jpg
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

SHOWN = ("good/002", "scratch/005", "dent/000", "stain/003", "missing_hole/005")


def main(photos: Path, overlays: Path, out: Path) -> None:
    """Write the picture: a column for each of SHOWN."""
    columns = [
        np.vstack([cv2.imread(str(photos / f"{name}.jpg")), cv2.imread(str(overlays / f"{name}.png"))])
        for name in SHOWN
    ]
    cv2.imwrite(str(out), np.hstack(columns), (cv2.IMWRITE_JPEG_QUALITY, 85))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("photos", "overlays", "out"):
        parser.add_argument(name, type=Path)
    main(**vars(parser.parse_args()))
