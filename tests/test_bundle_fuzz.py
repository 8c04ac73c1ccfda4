"""Bundles with random damage: each is read or refused in one sentence, in little time and memory.

Some hundred run with the suite, all of them by `pytest -m fuzz_all`. A number names a case: its seed.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cfa_cli.bundle import load_bundle, save_bundle
from cfa_cli.engine.runtimes import load_model
from cfa_cli.errors import CfaError

resource = pytest.importorskip("resource")  # Windows has none

GOLDEN = Path(__file__).parent / "golden" / "format1-default.safetensors"
SOME, ALL = 300, 3210
MEMORY = 1_000_000  # kB
SECONDS = 2.0  # of CPU
VALUES = [
    *(None, True, -1, 0, 1, 3, 63, 65, 4096, 2**31, 2**63, 10**400, -0.0, 1e-45, 1e308, 0.5),
    *(
        "",
        "x",
        "x" * 5000,
        "\x1b[2J",
        "\ud800",
        "1",
        "resnet18",
        "vit_7b_patch16_dinov3",
        "hf-hub:a/b",
        "../../x",
        "F64",
    ),
    *([], {}, [[]], [0] * 100_000, {"a": {"b": 1}}, ["4"] * 200, [4096, 4096], [64, 64], [1, 1]),
]


def split(data: bytes) -> tuple[dict, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: object, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    """Half of the flips hit the header, which is a small part of the file."""
    changed = np.frombuffer(data, np.uint8).copy()
    end = 8 + struct.unpack("<Q", data[:8])[0] if rng.random() < 0.5 else len(data)
    for position in rng.integers(0, end, rng.integers(1, 9)):
        changed[position] ^= 1 << rng.integers(8)
    return changed.tobytes()


def change_length(data: bytes, rng: np.random.Generator) -> bytes:
    length = int(rng.choice([0, 1, 2, 7, 100, len(data) - 8, len(data), 2**31, 2**40])) * int(rng.integers(1, 4))
    return struct.pack("<Q", length) + data[8:]


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    return [data[:start], data[:start] + data[end:], data + data[start:end]][rng.integers(3)]


def edit(document: object, rng: np.random.Generator) -> None:
    """Change, add or remove something somewhere in a JSON document."""
    places = []

    def walk(value: object) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(document)
    for _ in range(rng.integers(1, 4)):
        container, key = places[rng.integers(len(places))]
        value = VALUES[rng.integers(len(VALUES))]
        if isinstance(container, list):
            key = min(key, len(container) - 1)  # an earlier change may have shortened it
            if key < 0:
                continue
        container[key] = value
        if isinstance(container, dict) and rng.random() < 0.3:
            container[str(value)[:20]] = container.pop(key)


def edit_description(data: bytes, rng: np.random.Generator) -> bytes:
    header, body = split(data)
    document = json.loads(header["__metadata__"]["cfa"])
    edit(document, rng)
    header["__metadata__"]["cfa"] = json.dumps(document)
    return join(header, body)


def edit_header(data: bytes, rng: np.random.Generator) -> bytes:
    header, body = split(data)
    edit(header, rng)
    return join(header, body)


def edit_values(data: bytes, rng: np.random.Generator) -> bytes:
    """Huge and tiny numbers as values, under no digest."""
    header, body = split(data)
    document = json.loads(header["__metadata__"]["cfa"])
    del document["tensors_sha256"]
    header["__metadata__"]["cfa"] = json.dumps(document)
    values = np.frombuffer(body, "<f4").copy()
    count = int(rng.choice([1, 10, 1000, len(values)]))
    start = int(rng.integers(0, len(values) - count + 1))
    values[start : start + count] = rng.choice([0, -1, 1e-45, 1e19, 1e30, 3.4e38, -3.4e38, np.nan, np.inf])
    return join(header, values.tobytes())


MUTATIONS: list[Callable[[bytes, np.random.Generator], bytes]] = [
    flip_bits,
    change_length,
    cut,
    edit_description,
    edit_header,
    edit_values,
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small bundle in the present format, loaded once so that every library is there."""
    path = tmp_path_factory.mktemp("fuzz") / "m.safetensors"
    save_bundle(load_bundle(GOLDEN), path)
    load_and_score(path)
    return path.read_bytes()


def load_and_score(path):
    bundle, scorer = load_model(path, "cpu")
    scores, _ = scorer(scorer.prepare(np.full((50, 60, 3), 100, np.uint8))[None])
    assert scores.shape == (1,)
    return bundle


def check(whole, path, seed):
    """Damage, load and score; return how it ended."""
    rng = np.random.default_rng(seed)
    path.write_bytes(MUTATIONS[seed % len(MUTATIONS)](whole, rng))
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    refusal = ""
    try:
        load_and_score(path)
    except CfaError as error:
        refusal = error.message
    seconds = time.process_time() - start
    assert seconds < SECONDS, (seed, seconds)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < MEMORY, (seed, grown)
    assert not refusal or (refusal.endswith(".") and len(refusal) < 1000), (seed, refusal)
    return "refused" if refusal else "read", seconds, grown


@pytest.mark.parametrize(
    "seeds", [range(SOME), pytest.param(range(ALL), marks=pytest.mark.fuzz_all)], ids=["some", "all"]
)
def test_damaged_bundles_are_read_or_refused(whole, tmp_path, seeds):
    outcomes = [check(whole, tmp_path / "m.safetensors", seed) for seed in seeds]
    ends = [ended for ended, _, _ in outcomes]
    assert 0.5 < ends.count("refused") / len(ends) < 0.95, "the damage is too small or too large to test much"
    print(
        f"{len(ends)} bundles: {ends.count('read')} read, {ends.count('refused')} refused; at most "
        f"{max(s for _, s, _ in outcomes):.2f} s of CPU and {max(g for _, _, g in outcomes) / 1000:.0f} MB more memory"
    )
