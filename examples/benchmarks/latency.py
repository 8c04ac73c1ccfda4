"""Time from an image's arrival in a watched folder to its row in scores.csv, one image at a time.

    python examples/benchmarks/latency.py CATEGORY --model FILE [--images 200] [--save overlay]

CATEGORY is a folder in MVTec's layout. `cfa predict --watch` runs as a process of its own; each image is moved into its
folder when the row of the one before is there. Median, 99th percentile and largest, in ms.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from speed import describe_machine

from cfa_cli.data.inputs import find_images

PATIENCE = 120  # seconds for one row
STEP = 0.0005  # seconds between two looks at the table


def rows(table: Path) -> int:
    """How many images have their row."""
    return max(0, table.read_bytes().count(b"\n") - 1) if table.exists() else 0


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--save", default="overlay")
    options = parser.parse_args()

    waits = []
    with tempfile.TemporaryDirectory() as folder:
        watched, out, beside = Path(folder, "in"), Path(folder, "out"), Path(folder, "beside")
        watched.mkdir()
        beside.mkdir()
        command = [sys.executable, "-m", "cfa_cli", "predict", "--watch", watched, "--out", out, "--quiet"]
        command += ["--model", options.model, "--save", options.save]
        process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
        try:
            images = itertools.islice(itertools.cycle(find_images(options.category / "test")), options.images + 1)
            for number, path in enumerate(images):
                copy = Path(shutil.copy(path, beside / f"{number:05}{path.suffix}"))
                start = time.perf_counter()
                copy.rename(watched / copy.name)
                while rows(out / "scores.csv") <= number:
                    if process.poll() is not None or time.perf_counter() - start > PATIENCE:
                        raise SystemExit(f"no row of {path}")
                    time.sleep(STEP)
                waits.append(1000 * (time.perf_counter() - start))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
    waits = waits[1:]  # the command started during the first
    median, late = np.percentile(waits, [50, 99])
    print(f"{options.category.name}, --save {options.save}, {len(waits)} images, one at a time. {describe_machine()}.")
    print(f"median {median:.0f} ms, 99th percentile {late:.0f} ms, largest {max(waits):.0f} ms")


if __name__ == "__main__":
    main()
