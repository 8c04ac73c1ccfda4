"""Threads that compute an image each, so that none waits for another inside a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")
Result = TypeVar("Result")


class Workers:
    """The CPU's threads (torch.get_num_threads() of them), shared out over at most `batch_size` images at a time.

    A whole image per thread keeps its maps in that core's cache, and the results do not depend on how many threads
    there are. Where there are more threads than images, each image gets several. Other devices take batches whole.
    """

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self.whole = device.type != "cpu"
        threads = torch.get_num_threads()
        count = 1 if self.whole else min(threads, batch_size)
        share = max(1, threads // count)
        # The number is the thread's own: the calling thread keeps its.
        self._pool = ThreadPoolExecutor(count, "cfa-compute", torch.set_num_threads, (share,))

    def split(self, batch: Tensor) -> Sequence[Tensor]:
        """Cut a batch (B, ...) into the parts to compute: single images on the CPU, else the whole batch."""
        return [batch] if self.whole else torch.split(batch, 1)

    def map(self, function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """Apply the function to every part, side by side; the results are in the parts' order."""
        if len(parts) == 1:  # with all threads
            return [function(parts[0])]
        return list(self._pool.map(function, parts))

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
