"""Threads for images: they are used, and nobody else's number of threads changes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cfa_cli.engine.workers import Workers

CPU = torch.device("cpu")


@pytest.fixture(params=[2, 6])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def in_new_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def seen(_):
    threading.Event().wait(0.01)  # so that every thread takes a part
    return threading.get_ident(), torch.get_num_threads()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_a_burst_leaves_every_other_threads_number_alone(threads, batch_size):
    with Workers(CPU, batch_size) as workers:
        burst = workers.map(seen, workers.split(torch.zeros(8, 3)))
        count = min(threads, batch_size)
        assert len({thread for thread, _ in burst}) == count
        assert {number for _, number in burst} == {threads // count}
        # While the workers live, and after them: in this thread, in new ones, and for a single image in either.
        for _ in range(2):
            assert torch.get_num_threads() == threads
            assert in_new_thread(torch.get_num_threads) == threads
            assert workers.map(seen, [0])[0][1] == threads
            assert in_new_thread(lambda: workers.map(seen, [0]))[0][1] == threads
    assert torch.get_num_threads() == threads
    assert in_new_thread(torch.get_num_threads) == threads


def test_the_callers_own_number_is_not_made_everybodys(threads):
    def with_one_thread_of_its_own():
        torch.set_num_threads(threads)
        with Workers(CPU, 4) as workers:
            workers.map(seen, range(4))
        return torch.get_num_threads()

    assert in_new_thread(with_one_thread_of_its_own) == threads
    assert torch.get_num_threads() == threads


def test_workers_may_be_started_side_by_side(threads):
    def work(_):
        with Workers(CPU, 4) as workers:
            workers.map(seen, range(4))
        return torch.get_num_threads()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(8))) == {threads}
    assert in_new_thread(torch.get_num_threads) == threads


def test_results_are_in_order_and_errors_reach_the_caller(threads):
    with Workers(CPU, 4) as workers:
        assert workers.map(lambda part: part * 2, range(20)) == list(range(0, 40, 2))
        with pytest.raises(ZeroDivisionError):
            workers.map(lambda part: 1 // part, [1, 0, 2])


def test_other_devices_take_batches_whole():
    workers = Workers(torch.device("meta"), 8)
    batch = torch.zeros(8, 3)
    parts = workers.split(batch)
    assert parts[0] is batch
    assert workers.map(lambda part: threading.get_ident(), parts) == [threading.get_ident()]
