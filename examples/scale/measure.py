"""Figures of examples/scale: predict with and without Ray, the driver's limit, and what more training images bring.

    python measure.py draw photos 50000                        # small images of parts, a tenth with a defect
    python measure.py fit photos model.safetensors
    python measure.py predict model.safetensors photos 0 1 2 4 # actors of one core each; 0: without Ray
    python measure.py simulate model.safetensors 1 4 16 64     # workers that sleep for what a GPU takes
    python measure.py subsets 250 1000 4000                    # training images, of drawn parts

Each measurement prints a line of JSON when it ends.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import psutil
import ray

from cfa_cli.engine.cluster import Outcome
from cfa_cli.records import ImageStatistics, Prediction

SIDE = 64  # px, of drawn images and of the network's input
IMAGES_A_FOLDER = 1000
GPU_MILLISECONDS = 4.0  # an image at 224 x 224 px, decoding included


def draw_part(number: int, defect: bool) -> np.ndarray:
    """A striped part, (h, w, 3) uint8, each number with its own place, light and noise; a defect is a faint spot."""
    random = np.random.default_rng(number)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    angle = random.normal(0.6, 0.05)
    part = 110 + random.normal(0, 6) + 25 * np.sin((columns * np.cos(angle) + rows * np.sin(angle)) / 3)
    part = part + 20 * (np.hypot(rows - random.normal(32, 2), columns - random.normal(32, 2)) < 14)
    if defect:
        row, column = random.integers(8, SIDE - 8, 2)
        part = part + random.choice([-12, 12]) * (np.hypot(rows - row, columns - column) < 3.5)
    part = part[..., None] + random.normal(0, 5, (SIDE, SIDE, 3))
    return part.clip(0, 255).astype(np.uint8)


def draw(folder: Path, count: int, first: int = 0, defects: bool | None = None) -> None:
    """Write `count` images to folders of a thousand; defects: of all (True), none, or every tenth (None)."""
    for number in range(first, first + count):
        path = folder / f"{number // IMAGES_A_FOLDER:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw_part(number, number % 10 == 9 if defects is None else defects))


def fit(folder: Path, model: Path, images: int) -> None:
    """Fit on the good ones among the first `images` in the folder."""
    from cfa_cli import FitConfig, fit, save_bundle

    good = [path for path in sorted(folder.rglob("*.jpg"))[:images] if int(path.stem) % 10 != 9]
    save_bundle(fit(good, FitConfig(weights="embedded", size=(SIDE, SIDE))).bundle, model, force=True)


@contextmanager
def watched(seconds: float = 2.0) -> Iterator[dict[str, object]]:
    """Measure within the block: wall time, CPU time of this process and all, and memory over time, MB."""
    own = psutil.Process()
    figures: dict[str, object] = {}
    memory: list[tuple[float, int, int]] = []
    ended, used = threading.Event(), {}
    start, before = time.perf_counter(), own.cpu_times()

    def watch() -> None:
        while True:
            for child in own.children(recursive=True):
                try:
                    times = child.cpu_times()
                    used[child.pid] = times.user + times.system
                except psutil.Error:
                    continue
            total = own.memory_info().rss + sum(_unshared(child) for child in own.children(recursive=True))
            memory.append((time.perf_counter() - start, own.memory_info().rss >> 20, total >> 20))
            if ended.wait(seconds):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    yield figures
    ended.set()
    thread.join()
    after = own.cpu_times()
    driver = after.user + after.system - before.user - before.system
    figures["seconds"] = round(time.perf_counter() - start, 1)
    figures["driver_cpu_seconds"], figures["all_cpu_seconds"] = round(driver, 1), round(driver + sum(used.values()), 1)
    tenths = [memory[int(place)] for place in np.linspace(0, len(memory) - 1, 10)]
    figures["memory_mb"] = [{"at": round(at, 1), "driver": one, "all": total} for at, one, total in tenths]


def _unshared(process: psutil.Process) -> int:
    try:
        info = process.memory_info()
        return int(info.rss - getattr(info, "shared", 0))
    except psutil.Error:
        return 0


def predict(model: Path, folder: Path, actors: int, save: tuple[str, ...]) -> dict[str, object]:
    """Score a folder with so many actors of one core; 0: without Ray. Returns the figures."""
    from cfa_cli import predict

    with tempfile.TemporaryDirectory() as out, watched() as figures:
        rows, first = 0, 0.0
        start = time.perf_counter()
        if actors:
            start_ray(actors)
        run = predict(model, folder, out=out, save=save, ray="local" if actors else None)
        for _ in run:
            rows += 1
            first = first or time.perf_counter() - start
        lines = len((Path(out) / "scores.csv").read_text(encoding="utf-8").splitlines()) - 1
    ray.shutdown()
    if rows != lines:
        raise RuntimeError(f"{rows} results, {lines} rows")
    seconds = float(str(figures["seconds"]))
    rate = round(rows / (seconds - first), 1)  # once workers are up
    return {"actors": actors, "rows": rows, "first_row_seconds": round(first, 1), "rows_a_second": rate, **figures}


def start_ray(actors: int) -> None:
    """Start Ray on this machine for so many workers of one core each, however many cores there are."""
    from cfa_cli.engine import cluster_predict
    from cfa_cli.engine.cluster import Share

    ray.init("local", num_cpus=actors, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    cluster_predict.share_of_worker = lambda device: Share(1, 0, actors)


class SleepingWorker:
    """Takes as long as a GPU, and computes nothing; it imports no torch, so that 64 fit on one machine."""

    def __init__(self, setup: object, attempts: object) -> None:
        self._attempts = attempts

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        """Do what `cluster_predict.Worker` does with one list of images, but for the work."""
        images = pickle.loads(batch["images"][0])
        ray.get(self._attempts.begin.remote(f"list {batch['number'][0]}"))
        time.sleep(len(images) * GPU_MILLISECONDS / 1000)
        like = ImageStatistics(SIDE, SIDE, False, 0.45, 0.1, 0.1)
        done = [Prediction(source, 1.0, 0.2, 4.0, "good", GPU_MILLISECONDS, statistics=like) for source, _ in images]
        return {"outcome": [pickle.dumps(Outcome(done, 1, ()))]}


def simulate(model: Path, actors: int, images: int) -> dict[str, object]:
    """Let `actors` sleep for `images` images that there need not be."""
    from cfa_cli.engine.cluster_predict import ClusterModel
    from cfa_cli.engine.predict_options import PredictOptions
    from cfa_cli.engine.predictions import Predictions
    from cfa_cli.records import Source

    ClusterModel.worker = SleepingWorker  # type: ignore[assignment]
    names = (f"{number // IMAGES_A_FOLDER:03}/{number:06}.jpg" for number in range(images))
    with tempfile.TemporaryDirectory() as out, watched() as figures:
        start_ray(actors)
        options = PredictOptions(out=out, save=(), ray="local")
        run = Predictions(ClusterModel(model, options), options)
        run.add([Source(Path("/nowhere") / name, name) for name in names])
        times: list[float] = []
        own = psutil.Process()
        cpu = 0.0
        for number, _ in enumerate(run):
            if number in (images // 4, images - images // 10):
                times.append(time.perf_counter())
                cpu = sum(own.cpu_times()[:2]) - cpu
    ray.shutdown()
    middle = images - images // 10 - images // 4
    return {
        "actors": actors,
        "ideal_rows_a_second": round(1000 * actors / GPU_MILLISECONDS),
        "rows_a_second": round(middle / (times[1] - times[0])),  # from a quarter to nine tenths of the run
        "driver_microseconds_a_row": round(1e6 * cpu / middle),  # CPU time: what it could do at most, alone on a core
        **figures,
    }


def subsets(counts: list[int]) -> Iterator[dict[str, object]]:
    """Fit on so many drawn good parts, and test on 500 good ones and 500 with a defect."""
    from sklearn.metrics import roc_auc_score

    from cfa_cli import FitConfig, fit, predict

    with tempfile.TemporaryDirectory() as folder:
        good, tests = Path(folder) / "good", Path(folder) / "test"
        draw(good, max(counts), defects=False)
        draw(tests / "good", 500, first=1_000_000, defects=False)
        draw(tests / "bad", 500, first=2_000_000, defects=True)
        for count in counts:
            start = time.process_time()
            result = fit(good, FitConfig(weights="embedded", size=(SIDE, SIDE), max_images=count))
            seconds = time.process_time() - start
            found = list(predict(result.bundle, tests))
            bad = [one.source.name.split("/")[0] == "bad" for one in found]
            calibration = result.bundle.calibration
            flagged = [one.label == "anomalous" for one, defect in zip(found, bad, strict=True) if not defect]
            yield {
                "images": count,
                "auroc": round(float(roc_auc_score(bad, [one.score for one in found])), 4),
                "false_alarms": sum(flagged) / len(flagged),
                "expected": [round(calibration.fpr_low, 3), round(calibration.fpr_high, 3)],
                "cpu_seconds": round(seconds, 1),
            }


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("draw")
    one.add_argument("folder", type=Path)
    one.add_argument("count", type=int)
    one = commands.add_parser("fit")
    one.add_argument("folder", type=Path)
    one.add_argument("model", type=Path)
    one.add_argument("--images", type=int, default=200)
    one = commands.add_parser("predict")
    one.add_argument("model", type=Path)
    one.add_argument("folder", type=Path)
    one.add_argument("actors", type=int, nargs="+")
    one.add_argument("--save", default="none", choices=["none", "overlay"])
    one = commands.add_parser("simulate")
    one.add_argument("model", type=Path)
    one.add_argument("actors", type=int, nargs="+")
    one.add_argument("--images", type=int, default=50_000)
    one = commands.add_parser("subsets")
    one.add_argument("counts", type=int, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "draw":
        draw(arguments.folder, arguments.count)
    elif arguments.command == "fit":
        fit(arguments.folder, arguments.model, arguments.images)
    elif arguments.command == "subsets":
        for figures in subsets(arguments.counts):
            print(json.dumps(figures), flush=True)
    else:
        for actors in arguments.actors:
            if arguments.command == "predict":
                save = () if arguments.save == "none" else (arguments.save,)
                print(json.dumps(predict(arguments.model, arguments.folder, actors, save)), flush=True)
            else:
                print(json.dumps(simulate(arguments.model, actors, arguments.images)), flush=True)


if __name__ == "__main__":
    main()
