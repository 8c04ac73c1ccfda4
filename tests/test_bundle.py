"""The model file: what is written is what is read, and what is wrong is said in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cfa_cli import __version__
from cfa_cli.bundle import from_metadata, load_bundle, save_bundle
from cfa_cli.config import FitConfig
from cfa_cli.engine.runtimes import load_model
from cfa_cli.errors import BundleError, InputError
from cfa_cli.evidence import Calibration, HoldoutImages
from cfa_cli.records import BackboneInfo, Bundle, Geometry, Provenance

D, C, M = 5, 7, 12


def make_bundle() -> Bundle:
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return Bundle(
        config=FitConfig(layers=("4", "8"), size=(64, 96), crop=(48, 64), gamma_c=4, bank="ema", score_neighbours=3),
        geometry=Geometry((64, 96), (48, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        grid=(12, 16),
        backbone=BackboneInfo("resnet18", ("layer1", "layer2"), "file: x.pth", "ab" * 32, "A warning: ümläut."),
        calibration=Calibration(0.05, 1.25, 1.1, 0.3, 1.9, 0.01, 0.2, (0.1, 1.25), (0.1, 1.2)),
        provenance=Provenance("0.1.0", "2.6.0", "1.0.15", "3.11.7", "2026-01-31", 25, "cd" * 32, 0),
        tensors={
            "descriptor.weight": numbers(D, C + 2, 1, 1),
            "descriptor.bias": numbers(D),
            "bank": numbers(M, D),
            "radius": np.float32(0.01).reshape(()),
            "baseline": np.full((12, 16), 0.5, np.float32),
            "backbone.conv1.weight": numbers(4, 3, 3, 3),
        },
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save_bundle(make_bundle(), path)
    return path


def document_of(path):
    """The description, read without the product's code."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return json.loads(header["__metadata__"]["cfa"])


def rewrite(path, document, tensors=None):
    """Write the file anew with another description or other tensors, with the public library."""
    save_file(tensors if tensors is not None else load_file(path), path, {"cfa": json.dumps(document)})


def refused(path):
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    message, hint = caught.value.message, caught.value.hint
    assert str(path) in message
    assert message.endswith(".")
    assert "\n" not in message
    assert hint
    return message, hint


def test_what_is_read_is_what_was_written(saved):
    written, read = make_bundle(), load_bundle(saved)
    for name in ("config", "geometry", "grid", "backbone", "calibration", "provenance"):
        assert getattr(read, name) == getattr(written, name)
    assert sorted(read.tensors) == sorted(written.tensors)
    for name, tensor in written.tensors.items():
        assert read.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(read.tensors[name], tensor)


def test_the_public_library_reads_it(saved):
    assert {name: tensor.shape for name, tensor in load_file(saved).items()} == {
        "descriptor.weight": (D, C + 2, 1, 1),
        "descriptor.bias": (D,),
        "bank": (M, D),
        "radius": (),
        "baseline": (12, 16),
        "backbone.conv1.weight": (4, 3, 3, 3),
    }
    document = document_of(saved)
    assert document["format"] == 2
    sections = {"config", "geometry", "backbone", "calibration", "provenance"}
    assert set(document) == {"format", "minor", "cfa", "grid", "tensors_sha256"} | sections


def test_the_same_bundle_gives_the_same_bytes_however_it_lies_in_memory(saved, tmp_path):
    bundle = make_bundle()
    strided = {name: np.asarray(t, order="F") for name, t in reversed(bundle.tensors.items())}
    for number in range(8):  # the order of a hash map would differ sooner or later
        size = save_bundle(replace(bundle, tensors=strided), tmp_path / f"{number}.safetensors")
        assert (tmp_path / f"{number}.safetensors").read_bytes() == saved.read_bytes()
        assert size == saved.stat().st_size


def test_nothing_is_overwritten_unless_asked(saved, tmp_path):
    before = saved.read_bytes()
    bundle = make_bundle()
    other = replace(bundle, grid=(6, 8), tensors=bundle.tensors | {"baseline": np.ones((6, 8), np.float32)})
    with pytest.raises(InputError, match="exists already") as caught:
        save_bundle(other, saved)
    assert "--force" in str(caught.value.hint)
    assert saved.read_bytes() == before
    save_bundle(other, saved, force=True)
    assert load_bundle(saved).grid == (6, 8)
    with pytest.raises(InputError, match="is a folder"):
        save_bundle(other, tmp_path, force=True)


def test_every_cut_is_noticed(saved, tmp_path):
    data, cut = saved.read_bytes(), tmp_path / "cut.safetensors"
    for end in [0, 1, 7, 8, 9, 100, *range(200, len(data), 97), len(data) - 1]:
        cut.write_bytes(data[:end])
        refused(cut)
    cut.write_bytes(data + b"x")
    refused(cut)


def test_flipped_bits_are_read_or_refused_but_never_crash(saved, tmp_path):
    data, flipped = saved.read_bytes(), tmp_path / "flipped.safetensors"
    header = struct.unpack("<Q", data[:8])[0]
    rng = np.random.default_rng(0)
    for position in [*range(8), *rng.integers(8, 8 + header, 100).tolist()]:
        bad = bytearray(data)
        bad[position] ^= 1 << int(rng.integers(8))
        flipped.write_bytes(bad)
        with suppress(BundleError):
            load_bundle(flipped)


def header_file(path, header: bytes, length: int | None = None, body: bytes = b""):
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)
    return path


def test_hostile_headers(tmp_path):
    path = tmp_path / "hostile.safetensors"
    refused(header_file(path, b"{}", length=2**63))
    refused(header_file(path, b"{}", length=2**64 - 1))
    refused(header_file(path, b'{"a":' * 50_000 + b"1" + b"}" * 50_000))
    refused(header_file(path, b"[" * 100_000))
    refused(header_file(path, b" " * 5_000_000))
    assert "more than any model" in refused(header_file(path, b" " * 5_000_000))[0]
    refused(header_file(path, b"\xff\xfe" * 50))
    for shape in ([2**40, 2**40], [2**62], [-1], [1e9], ["a"], [0]):
        tensor = {"bank": {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]}}
        refused(header_file(path, json.dumps(tensor).encode(), body=bytes(16)))
    for offsets in ([0, 2**60], [2**60, 2**60], [-8, 8], [8, 0], [0, 15]):
        tensor = {"bank": {"dtype": "F32", "shape": [4], "data_offsets": offsets}}
        refused(header_file(path, json.dumps(tensor).encode(), body=bytes(16)))


def test_deep_and_strange_descriptions(saved):
    tensors = load_file(saved)
    for text in ("[" * 100_000, '{"format": ' * 50_000, "", "null", "[]", "1", '{"format": "1"}', '{"format": 1}'):
        save_file(tensors, saved, {"cfa": text})
        refused(saved)


def test_a_newer_format_says_which_version_reads_it(saved):
    rewrite(saved, {"format": 3, "cfa": "7.3.0", "something": "else"})
    message, hint = refused(saved)
    assert "7.3.0" in message
    assert "format 3" in message
    assert __version__ in message
    assert "pipx upgrade" in hint
    assert "7.3.0" in hint


def test_changed_tensors_are_noticed(saved):
    """Values that are all finite and fit together, and are not those that were written."""
    document, tensors = document_of(saved), load_file(saved)
    digest = hashlib.sha256()
    for name in sorted(tensors):  # by the format's definition
        digest.update(name.encode() + b"\0" + str(list(tensors[name].shape)).encode() + b"\0" + tensors[name].tobytes())
    assert document["tensors_sha256"] == digest.hexdigest()
    changed = tensors["bank"].copy()
    changed[3, 2] = np.nextafter(changed[3, 2], np.float32(9))
    for other in ({"bank": changed}, {"bank": tensors["bank"][::-1].copy()}, {"more": np.ones(1, np.float32)}):
        rewrite(saved, document, tensors | other)
        assert "SHA-256" in refused(saved)[0]
    rewrite(saved, document | {"tensors_sha256": None}, tensors)
    refused(saved)
    del document["tensors_sha256"]  # as an earlier version wrote it
    rewrite(saved, document, tensors)
    load_bundle(saved)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("bank", None, "bank is missing"),
        ("radius", None, "radius is missing"),
        ("baseline", None, "baseline is missing"),
        ("baseline", np.ones((12, 15), np.float32), "expected (12, 16)"),
        ("baseline", np.zeros((12, 16), np.float32), "not positive"),
        ("bank", np.zeros((M, D + 1), np.float32), f"expected (M, {D})"),
        ("bank", np.zeros((0, D), np.float32), f"expected (M, {D})"),
        ("bank", np.zeros((2, D), np.float32), "2 centroids"),
        ("bank", np.zeros(M * D, np.float32), f"expected (M, {D})"),
        ("descriptor.bias", np.zeros(D + 1, np.float32), f"expected ({D},)"),
        ("descriptor.weight", np.zeros((D, C + 2), np.float32), "expected (D, C + 2, 1, 1)"),
        ("descriptor.weight", np.zeros((D, 2, 1, 1), np.float32), "expected (D, C + 2, 1, 1)"),
        ("radius", np.zeros(2, np.float32), "single number"),
        ("bank", np.zeros((M, D), np.float64), "type F64, expected F32"),
        ("backbone.conv1.weight", np.full((4, 3, 3, 3), np.nan, np.float32), "holds NaN"),
        ("bank", np.full((M, D), np.inf, np.float32), "holds NaN or infinity"),
    ],
)
def test_wrong_tensors(saved, name, value, expected):
    tensors = load_file(saved)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    rewrite(saved, document_of(saved), tensors)
    assert expected in refused(saved)[0]


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("geometry", "size", [64, 10**6]),
        ("geometry", "size", [0, 96]),
        ("geometry", "size", [64]),
        ("geometry", "crop", [65, 64]),
        ("geometry", "std", [0.2, 0.0, 0.2]),
        ("geometry", "mean", [0.2, float("nan"), 0.2]),
        ("config", "score_neighbours", 0),
        ("config", "score_neighbours", M + 1),
        ("config", "sigma", 1e9),
        ("config", "sigma", -1.0),
        ("config", "sigma", 10**400),
        ("config", "bank", "median"),
        ("config", "epochs", "30"),
        ("config", "epochs", True),
        ("calibration", "threshold", 0.0),
        ("calibration", "threshold", None),
        ("calibration", "pixel_threshold", -1.0),
        ("calibration", "threshold_low", 0.5),  # without the other end
        ("calibration", "display_high", 0.3),
        ("calibration", "min_area", 0),
        ("calibration", "holdout_scores", []),
        ("backbone", "name", 7),
        ("provenance", "images", 1.5),
    ],
)
def test_wrong_values(saved, section, field, value):
    document = document_of(saved)
    document[section][field] = value
    rewrite(saved, document)
    refused(saved)


def test_statistics_of_held_out_images_are_as_many_as_their_scores(saved):
    document, each = document_of(saved), [0.5] * len(document_of(saved)["calibration"]["holdout_scores"])
    document["holdout"] = {"brightness": each, "contrast": each, "sharpness": each}
    rewrite(saved, document)
    assert load_bundle(saved).holdout == HoldoutImages(tuple(each), tuple(each), tuple(each))
    for name, values in (("contrast", each[1:]), ("names", ["a.png"])):
        changed = document | {"holdout": document["holdout"] | {name: values}}
        rewrite(saved, changed)
        assert "held-out" in refused(saved)[0]


@pytest.mark.parametrize(("low", "high"), [(1.3, 1.0), (-1.0, 2.0), (0.0, 2.0), (None, 2.0)])
def test_an_interval_of_the_threshold_that_is_none(saved, low, high):
    document = document_of(saved)
    document["calibration"] |= {"threshold_low": low, "threshold_high": high}
    rewrite(saved, document)
    assert "interval" in refused(saved)[0]


def test_missing_and_unknown_fields(saved):
    document = document_of(saved)
    del document["calibration"]["threshold"]
    rewrite(saved, document)
    assert "calibration" in refused(saved)[0]
    document = document_of(saved)
    document["calibration"]["threshold"] = 1.0
    document["geometry"]["rotation"] = 90
    document["colours"] = ["red"]
    del document["config"]["seed"]
    rewrite(saved, document)
    bundle = load_bundle(saved)
    assert bundle.unknown == {"colours": ["red"], "geometry.rotation": 90}
    assert bundle.config.seed == 0
    save_bundle(bundle, saved, force=True)
    assert load_bundle(saved).unknown == bundle.unknown
    del document["geometry"]
    rewrite(saved, document)
    assert "geometry" in refused(saved)[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders")
@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".xml", ".pt2"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    os.mkfifo(f"pipe{suffix}")
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"folder{suffix}").mkdir()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"socket{suffix}")
        for name in ("pipe", "device", "socket"):
            with pytest.raises(BundleError, match="is a pipe, a socket or a device"):
                load_model(f"{name}{suffix}")
    with pytest.raises(BundleError, match="is a folder"):
        load_model(f"folder{suffix}")


def test_other_files_are_told_apart(saved, tmp_path):
    assert "no model at" in refused(tmp_path / "none.safetensors")[0]
    assert "is a folder" in refused(tmp_path)[0]
    photograph = tmp_path / "photo.JPG"
    photograph.write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    assert "is an image, not a model" in refused(photograph)[0]
    weights = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": np.zeros((4, 3, 3, 3), np.float32)}, weights)
    message, hint = refused(weights)
    assert "no model of cfa" in message
    assert "--weights" in hint
    text = tmp_path / "notes.txt"
    text.write_text("not a model, but longer than the eight bytes of a length")
    assert "no whole safetensors file" in refused(text)[0]


HOSTILE = [None, -1, 0, 1e308, 10**400, "x", [], {}, True, 2**31]


def leaves(value, path=()):
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))


def test_any_value_anywhere_is_read_or_refused(saved):
    document, tensors = document_of(saved), load_file(saved)
    accepted = 0
    for path in leaves(document):
        for value in HOSTILE:
            changed = json.loads(json.dumps({"top": document}))
            *keys, last = ("top", *path)
            target = changed
            for key in keys:
                target = target[key]
            target[last] = value
            try:
                bundle = from_metadata(saved, {"cfa": json.dumps(changed["top"])}, tensors)
            except BundleError:
                continue
            accepted += 1
            assert max(bundle.geometry.size) <= 8192
            assert bundle.calibration.threshold > 0
    assert accepted > 10
