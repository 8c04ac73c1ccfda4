"""Memory that may be taken: the machine's, or less where a container has a limit."""

from __future__ import annotations

import psutil
import pytest

from cfa_cli.engine.memory import available_memory

GB = 10**9


def make_root(root, groups, files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))
    return root


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with 8 GB to take."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 8 * GB})())


V1 = {
    "memory/job/memory.limit_in_bytes": 3 * GB,
    "memory/job/memory.usage_in_bytes": 2 * GB,
    "memory/job/memory.stat": f"cache 5\ntotal_inactive_file {GB // 2}\n",
}
V2 = {
    "job/memory.max": 3 * GB,
    "job/memory.current": 2 * GB,
    "job/memory.stat": f"anon 7\ninactive_file {GB // 4}\n",
}
OUTSIDE = {name.removeprefix("job/"): text for name, text in V2.items()}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("5:cpu,cpuacct:/\n4:memory:/job\n0::/\n", V1, GB * 3 // 2),
        ("0::/job\n", V2, GB * 5 // 4),
        ("0::/job/inner\n", V2, GB * 5 // 4),  # a parent's limit
        ("0::/not/seen/from/inside\n", OUTSIDE, GB * 5 // 4),
        ("0::/job\n", V2 | {"job/memory.max": "max\n"}, 8 * GB),
        ("0::/job\n", V2 | {"job/memory.max": 100 * GB}, 8 * GB),
        ("0::/job\n", V2 | {"job/memory.max": GB}, 0),  # already over it
        ("4:memory:/job\n", {**V1, "memory/job/memory.limit_in_bytes": 9223372036854771712}, 8 * GB),
        ("0::/job\n", {}, 8 * GB),
    ],
)
def test_the_containers_limit_counts(tmp_path, groups, files, expected):
    assert available_memory(make_root(tmp_path, groups, files)) == expected


def test_systems_without_control_groups_have_the_machines(tmp_path):
    assert available_memory(tmp_path) == 8 * GB
