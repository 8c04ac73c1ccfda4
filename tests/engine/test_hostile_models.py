"""Model files made to run code: none of it runs, whatever the file is called."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from contextlib import suppress

import pytest
import torch

from cfa_cli.bundle import load_bundle
from cfa_cli.engine.runtimes import load_model
from cfa_cli.errors import BundleError, WeightsError
from cfa_cli.weights.loading import load_weights


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.register_buffer("constant", torch.ones(2), persistent=False)

    def forward(self, images):
        return images + self.weight + self.constant.sum()


class Touch:
    """Unpickling it makes a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def pickled(mark, zipped=True):
    stream = io.BytesIO()
    torch.save({"x": Touch(mark)}, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def pt2_with(path, changes):
    """Write a small .pt2 file in which each record whose name ends in a key is what its function makes of it."""
    batch = torch.export.Dim("batch", min=2, max=9)
    program = torch.export.export(Tiny(), (torch.ones(2, 3),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path, extra_files={"cfa.json": "{}"})
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    for ending, change in changes.items():
        (name,) = (name for name in records if name.endswith(ending)) if ending in " ".join(records) else (ending,)
        records[name] = change(records.get(name, b""))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, content in records.items():
            file.writestr(name, content)


def as_pickle(config):
    document = json.loads(config)
    for entry in document["config"].values():
        entry["use_pickle"] = True
    return json.dumps(document).encode()


def payloads(mark):
    """Where torch.export.load runs what it reads; the last holds no pickle, but an expression that sympy evaluates."""
    code = f"\"__import__('os').mkdir({str(mark)!r})\"".encode()
    return {
        "weight": {"weights/weight_0": lambda old: pickled(mark), "weights_config.json": as_pickle},
        "constant": {"constants/tensor_0": lambda old: pickled(mark), "constants_config.json": as_pickle},
        "sample input": {"sample_inputs/model.pt": lambda old: pickled(mark)},
        "expression": {"models/model.json": lambda old: re.sub(rb"(?<=\"expr_str\": )\"[^\"]*\"", code, old)},
    }


@pytest.mark.parametrize("payload", ["weight", "constant", "sample input", "expression"])
@pytest.mark.filterwarnings("ignore")
def test_no_code_in_a_pt2_file_runs(tmp_path, good_dir, payload, cfa):
    mark = tmp_path / "ran"
    path = tmp_path / "m.pt2"
    pt2_with(path, payloads(mark)[payload])
    with suppress(Exception):
        torch.export.load(path)
    assert mark.is_dir(), "torch no longer runs this payload"
    mark.rmdir()
    with pytest.raises(BundleError, match="cfa writes but does not run"):
        load_model(path)
    assert cfa("predict", good_dir / "000.png", "--model", path).code == 4
    assert cfa("info", path).code == 4
    assert cfa("export", "--model", path, "--format", "torch", "--force", "--out", path).code == 4
    for suffix in (".onnx", ".xml", ".safetensors", ".PT2", ""):
        renamed = path.rename(tmp_path / f"m{suffix}")
        with pytest.raises(BundleError):
            load_model(renamed)
        path = renamed
    with pytest.raises(BundleError):
        load_bundle(path)
    for suffix in (".pth", ".pt", ".bin"):
        path = path.rename(tmp_path / f"m{suffix}")
        with pytest.raises(WeightsError):
            load_weights(str(path), "resnet18")
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".xml", ".pt2"])
def test_no_bare_pickle_runs(tmp_path, suffix):
    mark = tmp_path / "ran"
    for number, content in enumerate((pickled(mark), pickled(mark, zipped=False), pickle.dumps(Touch(mark)))):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        with pytest.raises(BundleError):
            load_model(path)
    assert not mark.exists()
