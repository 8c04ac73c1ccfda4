"""How much memory may still be taken: by this machine, and by the container that the process runs in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

# (folder below /sys/fs/cgroup, limit, use, the statistic of file pages that can be dropped) by version of cgroups.
_V1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("", "memory.max", "memory.current", "inactive_file")


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that can be taken without swapping or passing the container's limit.

    root: where /proc and /sys are looked for.
    """
    machine: int = psutil.virtual_memory().available
    return max(0, min([machine, *_left_in_cgroups(root)]))


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Yield what is left below the memory limit of each control group that the process is in, and of its parents."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, limit, use, droppable = _V1 if controllers else _V2
        group = Path(path.lstrip("/"))
        # A container may see itself as the root, under the path that it has outside.
        for each in (group, *group.parents):
            try:
                place = root / "sys/fs/cgroup" / folder / each
                most, used = int((place / limit).read_text()), int((place / use).read_text())
                statistics = dict(entry.split() for entry in (place / "memory.stat").read_text().splitlines())
                yield most - used + int(statistics.get(droppable, 0))
            except (OSError, ValueError):  # no limit is written "max"
                continue
