"""Prediction and benchmarks on Ray, on real local clusters of several nodes: every row once, whatever dies."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cfa_cli import FitConfig, predict
from tests.conftest import assert_refused, write_part

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'cfa-cli[ray]'", exc_type=ImportError)
pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'cfa-cli[ray]'", exc_type=ImportError)

from ray.cluster_utils import Cluster  # noqa: E402

from cfa_cli.engine.cluster_predict import ClusterModel, Worker  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.skipif(os.name != "posix", reason="signals end workers here")]

STORE = 80_000_000  # bytes, nearly the least that Ray takes


class SlowWorker(Worker):
    """Takes its time, leaves its process's number, and dies of one image."""

    def _score_all(self, images):
        (self._out / "pids").mkdir(exist_ok=True)
        (self._out / "pids" / str(os.getpid())).touch()
        for source, _ in images:
            time.sleep(0.1)
            if source.path.name == "deadly.png":
                os.kill(os.getpid(), signal.SIGKILL)
        return super()._score_all(images)


def rows(out):
    with (out / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_rows(one, other):
    """Path for path the same scores and errors; the time apart, and rounding."""
    for mine, theirs in zip(one, other, strict=True):
        assert mine["path"] == theirs["path"]
        assert (mine["error"], mine["label"]) == (theirs["error"], theirs["label"])
        if mine["score"]:
            assert float(mine["score"]) == pytest.approx(float(theirs["score"]), rel=1e-5)


@pytest.fixture(scope="module")
def cluster():
    """Two workers of one core each, and a machine for the driver that has none for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster()
        # Ray writes nothing to a disk that is 95 % full, unless it is told to.
        spill = {"local_fs_capacity_threshold": 1.0}
        cluster.add_node(num_cpus=0, object_store_memory=STORE, include_dashboard=False, _system_config=spill)
        cluster.first, cluster.second = (cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2))
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(36):
        write_part(folder / f"line{number % 3}" / f"{number:03}.png", number, defect=number % 4 == 0)
    (folder / "line1" / "broken.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def expected(model, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "out"
    list(predict(model, images, out=out))
    return out


def test_rows_and_files_outlive_workers_nodes_and_a_full_object_store(
    cluster, images, model, expected, tmp_path, monkeypatch
):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(ClusterModel, "worker", SlowWorker)
    deadly = write_part(images / "line2" / "deadly.png", 99)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    out = tmp_path / "out"
    try:
        full = [ray.put(np.ones(10_000_000, np.uint8)) for _ in range(9)]  # 90 MB in a store of 80
        with predict(model, images, out=out, ray="auto") as run:
            for number, _ in enumerate(run):
                if number == 0:
                    pids = sorted((out / "pids").iterdir())
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pids[0].name), signal.SIGKILL)
                if number == 10:
                    cluster.add_node(num_cpus=1, object_store_memory=STORE)
                    cluster.remove_node(cluster.second, allow_graceful=False)
        del full
    finally:
        deadly.unlink()
        ray.shutdown()
    found = rows(out)
    (lost,) = [row for row in found if row["path"] == str(deadly)]
    assert lost["error"] == f"{deadly} ended 3 workers; most often memory ran out."
    assert_same_rows([row for row in found if row != lost], rows(expected))  # broken.png's error is among them
    assert any("scored again" in warning for warning in run.warnings)
    pictures = {path.relative_to(expected) for path in expected.rglob("*.*") if path.parent.name.startswith("line")}
    assert all((out / path).exists() for path in pictures)
    assert len(pictures) == 36 * 4


def test_a_driver_that_is_interrupted_and_killed_is_resumed(cluster, images, model, expected, tmp_path):
    command = [sys.executable, "-m", "cfa_cli", "predict", "--ray"]
    rest = [str(images), "--model", str(model), "--out", str(tmp_path / "out"), "--json", "--resume"]

    def start(*address):
        return subprocess.Popen(
            [*command, *address, *rest],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_rows(process, count):
        scores = tmp_path / "out" / "scores.csv"
        while not scores.exists() or len(scores.read_bytes().splitlines()) <= count:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)

    first = start(cluster.address)
    wait_for_rows(first, 3)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert json.loads(out)["error"]["exit_code"] == 130
    before = len(rows(tmp_path / "out"))
    assert 3 <= before < 37
    second = start(cluster.address)
    wait_for_rows(second, before + 3)
    second.kill()
    second.communicate()
    third = start()  # on this machine alone
    out, err = third.communicate(timeout=120)
    assert third.returncode == 8, err  # broken.png
    summary = json.loads(out)
    assert (summary["images"], summary["error_count"]) == (37, 1)
    assert summary["done_before"] >= before + 3 - 1
    assert "ray" not in err.lower()
    assert_same_rows(rows(tmp_path / "out"), rows(expected))


def test_what_workers_do_not_see_or_have_otherwise_is_said(cluster, images, model, tmp_path, monkeypatch):
    here = {"cfa": "0.0.9", "torch": "1.0", "python": "3.1"}
    monkeypatch.setattr("cfa_cli.engine.cluster_predict.versions", lambda: here)
    gone = write_part(tmp_path / "some" / "gone.png", 1)
    write_part(tmp_path / "some" / "there.png", 2)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        run = predict(model, tmp_path / "some", out=tmp_path / "out", ray="auto")
        gone.unlink()
        errors = {row.source.path.name: row.error for row in run}
    finally:
        ray.shutdown()
    assert errors["there.png"] is None
    assert errors["gone.png"].startswith(f"{gone} is not there on the worker ")
    (warning,) = [warning for warning in run.warnings if "cfa 0.0.9" in warning]
    assert "torch 1.0, python 3.1" in warning


def test_a_benchmark_on_a_cluster_gives_the_same_and_goes_on(cluster, tmp_path):
    from cfa_cli.data.datasets import open_dataset
    from cfa_cli.engine.benchmark import benchmark

    for name in ("bolt", "nut"):
        for number in range(8):
            write_part(tmp_path / "parts" / name / "train" / "good" / f"{number}.png", number)
        for number in range(4):
            write_part(tmp_path / "parts" / name / "test" / "good" / f"{number}.png", 20 + number)
            write_part(tmp_path / "parts" / name / "test" / "spot" / f"{number}.png", 30 + number, defect=True)
    dataset = open_dataset(str(tmp_path / "parts"))
    config = FitConfig(weights="embedded", size=(64, 64))
    local = benchmark(dataset, config, out=tmp_path / "local")
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        spread = benchmark(dataset, config, out=tmp_path / "spread", ray="auto")
        steps = []
        again = benchmark(dataset, config, out=tmp_path / "spread", ray="auto", progress=steps.append)
    finally:
        ray.shutdown()
    assert not spread.failures
    assert [(one.category, one.image_auroc) for one in spread.evaluations] == [
        (one.category, pytest.approx(one.image_auroc)) for one in local.evaluations
    ]
    assert again.evaluations == spread.evaluations
    assert [step.done for step in steps] == [2]
    assert (tmp_path / "spread" / "samples").is_dir()


def test_a_cluster_that_is_not_there_is_told_at_once(cfa, good_dir, model):
    refused = cfa("predict", good_dir, "--model", model, "--ray", "127.0.0.1:1")
    assert_refused(refused, 6, "No Ray cluster answers at 127.0.0.1:1", "ray start --head")
    assert not Path("maps").exists()
