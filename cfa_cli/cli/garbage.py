"""Python's garbage collector, kept from looking through what stays: torch alone makes half a million objects."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def nothing_to_collect() -> Iterator[None]:
    """Collect no garbage within the block, which imports libraries and opens models, nor ever look at what it made.

    Only for a process that is `cfa` itself: objects of others would not be collected either.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
