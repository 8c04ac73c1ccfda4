"""Threads that compute an image each, so that none waits for another inside a layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")
Result = TypeVar("Result")

PIXELS_AT_A_TIME = 8 * 512**2  # of the network's input: larger images are computed one by one, by all threads

_starting = threading.Lock()  # while torch's default is another


def images_at_a_time(size: tuple[int, int], most: int) -> int:
    """Return how many images are computed side by side, 1 to `most`, for inputs of `size` (height, width) px."""
    return max(1, min(most, PIXELS_AT_A_TIME // (size[0] * size[1])))


def in_batch(images: Sequence[Tensor]) -> Tensor:
    """Return images of one shape (...) as one tensor (B, ...); a single one, which may be large, is not copied."""
    return images[0][None] if len(images) == 1 else torch.stack(list(images))


class Workers:
    """The CPU's threads, shared out over at most `batch_size` images at a time.

    device: where the parts are computed. Other devices than the CPU take batches whole, in the calling thread.
    batch_size: images a batch, at least 1.

    There are as many threads as the caller's torch.get_num_threads(). A whole image per thread keeps its maps in that
    core's cache, and the results do not depend on how many threads there are. Where there are more threads than images,
    each image gets several. The caller's number of threads, and that of threads started later, stay as they are.
    """

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self.whole = device.type != "cpu"
        with _starting:
            threads = torch.get_num_threads()
            count = 1 if self.whole else min(threads, batch_size)
            self._pool = _start_pool(count, threads // count) if count > 1 else None

    def split(self, batch: Tensor) -> Sequence[Tensor]:
        """Cut a batch (B, ...) into the parts to compute: single images on the CPU, else the whole batch."""
        return [batch] if self.whole else torch.split(batch, 1)

    def map(self, function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """Apply the function to every part, side by side; the results are in the parts' order."""
        if self._pool is None or len(parts) == 1:  # with all threads
            return [function(part) for part in parts]
        return list(self._pool.map(function, parts))

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _start_pool(count: int, share: int) -> ThreadPoolExecutor:
    """Start `count` threads whose layers run on `share` threads each.

    torch.set_num_threads sets two numbers: the calling thread's own, and the one that every thread takes when it first
    computes. So all threads of the pool are started here, and the second number is then put back by a thread that had
    taken it.
    """
    with ThreadPoolExecutor(1) as keeper:
        default = keeper.submit(torch.get_num_threads).result()
        ready = threading.Barrier(count)

        def start() -> None:
            torch.get_num_threads()  # takes the default now, not at the first layer, over the thread's own number
            torch.set_num_threads(share)
            ready.wait()  # a thread that is done would take the next one's turn

        pool = ThreadPoolExecutor(count, "cfa-compute")
        for started in [pool.submit(start) for _ in range(count)]:
            started.result()
        keeper.submit(torch.set_num_threads, default).result()
    return pool
