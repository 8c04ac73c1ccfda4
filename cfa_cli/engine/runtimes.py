"""Exported models, run by their own runtimes: ONNX Runtime and OpenVINO, and torch while `.pt2` is verified."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfa_cli.bundle import METADATA_KEY, check_there, from_metadata, load_bundle
from cfa_cli.config import Precision
from cfa_cli.download import sha256_of
from cfa_cli.engine.scorer import Scorer, load_scorer
from cfa_cli.errors import BundleError, CfaError, DeviceError, ImageError, UsageError
from cfa_cli.geometry import to_input
from cfa_cli.model.deployed import INPUT, OUTPUTS
from cfa_cli.model.device import choose_device
from cfa_cli.model.quantised import multiplies_bytes
from cfa_cli.records import EXPORT_SUFFIXES, Bundle, ExportFormat, Geometry

EXPORT_KEY = "cfa_export"  # of the metadata: what the export is, and how it was verified
WEIGHTS_KEY = "cfa_weights_sha256"  # of OpenVINO's metadata: which .bin belongs to the .xml
KEEP_KEY = "cfa_keep"  # of the metadata, where something is ignored: see `keep_to_text`
TORCH_FILE = "cfa.json"  # the metadata's name within a .pt2 file
_EXTRAS = {"onnx": "onnx onnxscript onnxruntime", "openvino": "onnx onnxscript openvino", "nncf": "nncf"}
_AGAIN = "Export it again with `cfa export`."

Inference = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class ExportedScorer:
    """A model that `cfa export` wrote, scoring as the line's computer does. `run` maps a batch to scores and maps."""

    def __init__(self, run: Inference, bundle: Bundle, export: dict[str, Any]) -> None:
        note = export.get("note")  # earlier versions wrote none
        self.warnings: tuple[str, ...] = (str(note),) if note else ()
        self.geometry, self.training = bundle.geometry, bundle.training
        self.takes_any_size, self.takes_any_batch = bool(export["resize"]), bool(export["dynamic_batch"])
        self._run = run

    def prepare(self, image: np.ndarray) -> Tensor:
        """Turn an image (h, w, 3), RGB, uint8 or uint16, into the graph's input, as `prepare` does."""
        return prepare(image, self.geometry, self.takes_any_size)

    def __call__(self, inputs: Tensor, keep: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Score a batch of inputs of one shape: image scores (B,) and maps (B, H, W), float32, >= 0.

        keep: must be None; what is ignored is part of the graph.
        """
        if keep is not None:
            raise ValueError("An exported model ignores what its graph does.")
        batch = inputs.numpy()
        if self.takes_any_batch:
            return self._run(batch)
        results = [self._run(batch[i : i + 1]) for i in range(len(batch))]
        return np.concatenate([scores for scores, _ in results]), np.concatenate([maps for _, maps in results])


def prepare(image: np.ndarray, geometry: Geometry, resize: bool) -> Tensor:
    """Turn an image (h, w, 3), RGB, uint8 or uint16, into an exported graph's input.

    That is (3, H, W) float32 in 0..1, or the image itself where the graph resizes; then ImageError if it is uint16.
    """
    if not resize:
        return to_input(image, replace(geometry, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    if image.dtype != np.uint8:
        raise ImageError(
            "The image has 16 bit a channel; this model was exported with --with-resize and takes 8 bit.",
            "Export the model without --with-resize.",
        )
    return torch.from_numpy(image)


def load_model(path: str | Path, device: str = "auto", precision: Precision | None = None) -> tuple[Bundle, Scorer]:
    """Load a bundle, or by its suffix a model that `cfa export` wrote (its Bundle has no tensors), ready to score.

    A .pt2 file is refused (see `check_there`): torch would run code that is in it.
    Raises BundleError if it cannot be used or its runtime is not installed, UsageError, DeviceError.
    """
    path = Path(path)
    check_there(path)
    name = next((name for name, suffix in EXPORT_SUFFIXES.items() if suffix == path.suffix.lower()), None)
    if name is None:
        bundle = load_bundle(path)
        return bundle, load_scorer(bundle, device, precision)
    if precision not in (None, "auto", "float32"):
        raise UsageError(
            f"--precision {precision} does not go with an exported model, which computes in what it was exported in.",
            "Leave --precision out.",
        )
    return load_exported(path, name, device)


def load_exported(path: Path, name: ExportFormat, device: str = "auto") -> tuple[Bundle, ExportedScorer]:
    """Load an exported model of a known format; a .pt2 file must be this process's own.

    Raises BundleError and DeviceError.
    """
    openers = {"onnx": _open_onnx, "openvino": _open_openvino, "torch": _open_torch}
    try:
        metadata, run = openers[name](path, device)
        if METADATA_KEY not in metadata or EXPORT_KEY not in metadata:
            raise BundleError(f"{path} was not written by `cfa export`.", "Make one with `cfa export`.")
        export = json.loads(metadata[EXPORT_KEY])
        if export.get("precision") == "int8" and _cuts_sums():
            raise DeviceError(
                f"{path} computes in int8, and this processor (without VNNI) cuts sums of such products: its scores "
                "would be wrong.",
                "Export the model with --precision float32.",
            )
        bundle = from_metadata(path, metadata, {})
        if KEEP_KEY in metadata:
            bundle.tensors["keep"] = keep_from_text(metadata[KEEP_KEY], bundle.geometry.input_size)
        return bundle, ExportedScorer(run, bundle, export)
    except CfaError:
        raise
    except Exception as error:  # each runtime has its own exceptions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"{path} cannot be loaded: {reason.rstrip('.')}.", _AGAIN) from error


def _cuts_sums() -> bool:
    """Tell whether this processor keeps sums of two products of bytes in 16 bits, as x86 does without VNNI."""
    return platform.machine().lower() in ("x86_64", "amd64") and not multiplies_bytes(torch.device("cpu"))


def keep_to_text(keep: np.ndarray) -> str:
    """Return what is kept, (H, W) 1 or 0, as the lengths of its runs, row by row: kept and ignored in turn."""
    changes = np.flatnonzero(np.diff(keep.ravel(), prepend=1)).tolist()
    return " ".join(str(end - start) for start, end in zip([0, *changes], [*changes, keep.size], strict=True))


def keep_from_text(text: str, size: tuple[int, int]) -> np.ndarray:
    """Do the reverse for `size` (H, W): float32. Raises ValueError for what is no such text."""
    runs = [int(word) for word in text.split()]
    if min(runs, default=-1) < 0 or sum(runs) != size[0] * size[1]:
        raise ValueError("what it ignores is damaged")
    kept = np.arange(len(runs)) % 2 == 0
    return np.repeat(kept, runs).astype(np.float32).reshape(size)


def import_extra(module: str, extra: str, error: type[CfaError] = BundleError) -> Any:
    """Import what is no hard dependency; raise `error` with the command that installs it.

    Unless the user's environment says otherwise, it sends its makers no statistics and keeps none in the home folder.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it as it is imported
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # optional, it says of itself
    try:
        return importlib.import_module(module)
    except ImportError as reason:
        packages = _EXTRAS[extra]
        raise error(
            f"{module} is not installed.",
            f"Install it: pipx inject cfa-cli {packages} (or, without pipx, pip install {packages}).",
        ) from reason


def _open_onnx(path: Path, device: str) -> tuple[dict[str, str], Inference]:
    runtime = import_extra("onnxruntime", "onnx")
    kind = device.partition(":")[0]
    providers = {"auto": "CPUExecutionProvider", "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    if kind not in providers or providers[kind] not in runtime.get_available_providers():
        raise DeviceError(
            f"ONNX Runtime, as it is installed, has no device '{device}'.", "Use --device cpu, or its GPU package."
        )
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors alone; they are raised as well
    options.intra_op_num_threads = torch.get_num_threads()  # by itself it does not heed OMP_NUM_THREADS
    session = runtime.InferenceSession(str(path), options, providers=[providers[kind]])

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, maps = session.run(["score", "map"], {INPUT: images})
        return scores, maps

    return dict(session.get_modelmeta().custom_metadata_map), run


def _open_openvino(path: Path, device: str) -> tuple[dict[str, str], Inference]:
    openvino = import_extra("openvino", "openvino")
    _require_cpu(device, "OpenVINO")
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise BundleError(f"{path} has no {weights.name} beside it, which holds its weights.", _AGAIN)
    core = openvino.Core()
    model = core.read_model(str(path))
    metadata = {key: model.get_rt_info([key]).value for key in model.get_rt_info() if key.startswith(METADATA_KEY)}
    # Exports before 0.2 do not name their weights.
    if WEIGHTS_KEY in metadata and metadata[WEIGHTS_KEY] != sha256_of(weights):
        raise BundleError(f"{weights} does not belong to {path}: it is another export's.", _AGAIN)
    # By itself OpenVINO computes in bfloat16 where the processor has it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", settings)

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        results = compiled({INPUT: images})
        return results["score"], results["map"]

    return metadata, run


def _open_torch(path: Path, device: str) -> tuple[dict[str, str], Inference]:
    _require_cpu(device, "A .pt2 file")
    files = {TORCH_FILE: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(str(path), extra_files=files).module()

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            results = dict(zip(OUTPUTS, module(torch.from_numpy(images)), strict=True))
        return results["score"].numpy(), results["map"].numpy()

    text = files[TORCH_FILE]
    return json.loads(text) if text else {}, run


def _require_cpu(device: str, what: str) -> None:
    if device != "auto" and choose_device(device).type != "cpu":
        raise DeviceError(f"{what} runs on the CPU here, not on '{device}'.", "Leave --device out.")
