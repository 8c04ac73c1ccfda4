"""The store of features: the same in memory and in a file, of which nothing is left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch

from cfa_cli.config import FitConfig
from cfa_cli.engine import features, fit
from cfa_cli.engine.features import FeatureStore
from cfa_cli.errors import InputError

SHAPES = [(6, 8, 4), (10, 4, 2)]
CPU = torch.device("cpu")


def make_levels(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, *shape, generator=generator) for shape in SHAPES]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Path(platformdirs.user_cache_dir("cfa"))


def left_behind(cache):
    return [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("budget", [None, 0], ids=["memory", "file"])
def test_what_is_stored_comes_back_in_half_precision(cache, budget):
    levels = make_levels(5)
    with FeatureStore(SHAPES, capacity=7, budget=budget) as store:
        store.append([level[:2] for level in levels])
        store.append([level[2:] for level in levels])
        assert store.count == 5
        for indices in ([0], [4, 1], torch.tensor([3, 3, 0])):
            for level, found in zip(levels, store.levels(indices, CPU), strict=True):
                assert found.dtype == torch.float16
                np.testing.assert_array_equal(found, level[torch.as_tensor(indices)].half())
    assert left_behind(cache) == []


def test_values_past_half_precisions_range_are_cut_to_it():
    with FeatureStore([(1, 1, 3)], capacity=1) as store:
        store.append([torch.tensor([[[[1e6, -1e6, 1.0]]]])])
        assert store.levels([0], CPU)[0].flatten().tolist() == [65504, -65504, 1]


def test_training_from_a_file_gives_the_same_model(cache, good_dir, monkeypatch):
    config = FitConfig(weights="embedded", size=(32, 32), epochs=1)
    in_memory = fit.fit(good_dir, config).bundle
    monkeypatch.setattr(features, "available_memory", lambda: 0)
    stored = []
    monkeypatch.setattr(FeatureStore, "__exit__", lambda self, *rest: stored.append(self._file))
    in_file = fit.fit(good_dir, config).bundle
    assert stored[0] is not None
    assert (cache / "features").is_dir()
    assert in_file.calibration == in_memory.calibration
    for name, tensor in in_memory.tensors.items():
        np.testing.assert_array_equal(in_file.tensors[name], tensor)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_nothing_is_left_behind_after_a_kill(cache):
    code = (
        "import sys, torch\nfrom cfa_cli.engine.features import FeatureStore\n"
        "store = FeatureStore([(64, 16, 16)], 100, budget=0)\n"
        "store.append([torch.ones(100, 64, 16, 16)])\n"
        "print('stored', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"stored\n"
        assert (cache / "features").is_dir()
        process.send_signal(signal.SIGKILL)
    assert left_behind(cache) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space is not reserved on this system")
def test_a_full_disk_is_said_before_the_work(cache, monkeypatch):
    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="No space left") as caught:
        FeatureStore(SHAPES, capacity=10, budget=0)
    assert "XDG_CACHE_HOME" in str(caught.value.hint)
    assert left_behind(cache) == []


def test_a_file_in_the_way_of_the_cache(cache):
    cache.write_text("a file")
    with pytest.raises(InputError, match="1 images"):
        FeatureStore(SHAPES, capacity=1, budget=0)
