"""Models on disk: one safetensors file that holds all that `predict` needs."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from cfa_cli import __version__
from cfa_cli.atomic import atomic_path
from cfa_cli.config import BEFORE_THEY_WERE_FIELDS, MAX_SIDE, FitConfig
from cfa_cli.errors import BundleError, InputError, UsageError
from cfa_cli.evidence import Calibration, HoldoutImages, Recalibration
from cfa_cli.parsing import build_record
from cfa_cli.records import EXPORT_SUFFIXES, IMAGE_SUFFIXES, BackboneInfo, Bundle, Geometry, Provenance, TrainingImages
from cfa_cli.text import printable

FORMAT = 2  # raised when an older cfa could not read the file; see `_migrate`
MINOR = 1  # raised when the file has more fields, which an older cfa keeps without knowing them
METADATA_KEY = "cfa"
MAX_HEADER_BYTES = 4_000_000
MAX_REASON = 300  # characters of what is said about a damaged file, which its own names and values are part of
MAX_BACKBONE_NAME = 100  # characters; timm's longest is half as long
MAX_LAYERS = 100
_SECTIONS = {
    "config": FitConfig,
    "geometry": Geometry,
    "backbone": BackboneInfo,
    "calibration": Calibration,
    "provenance": Provenance,
    "training": TrainingImages,
    "holdout": HoldoutImages,
    "recalibration": Recalibration,
}
_OPTIONAL = {"training", "holdout", "recalibration"}  # sections that earlier versions did not write
_TOP_LEVEL = {"format", "minor", "cfa", "grid", "tensors_sha256", *_SECTIONS}
_ELSEWHERE = "Choose another place with --out."
_REFIT = "Fit the model again with `cfa fit`, or name another file with --model."


def save_bundle(bundle: Bundle, path: str | Path, force: bool = False) -> int:
    """Write `bundle` to `path` atomically and return its size in bytes; the same bundle gives the same bytes.

    Raises InputError if the file exists (unless `force`) or cannot be written.
    """
    path = Path(path)
    check_free(path, force)
    # Through a view of contiguous arrays: safetensors writes the memory as it lies, whatever the strides say.
    data = to_bytes({name: np.asarray(t, order="C") for name, t in sorted(bundle.tensors.items())}, to_metadata(bundle))
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return len(data)


def to_metadata(bundle: Bundle) -> dict[str, str]:
    """Return all of a bundle but its tensors, as the metadata of a file: names and texts.

    It is one text: safetensors writes several in an order that differs from run to run.
    """
    document: dict[str, Any] = {"format": FORMAT, "minor": MINOR, "cfa": __version__, "grid": bundle.grid}
    document["tensors_sha256"] = tensors_sha256(bundle.tensors)
    document |= {name: asdict(section) for name in _SECTIONS if (section := getattr(bundle, name)) is not None}
    for place, value in bundle.unknown.items():
        section, _, name = place.partition(".")
        if section in _SECTIONS and name:
            document[section][name] = value
        else:
            document[place] = value
    return {METADATA_KEY: json.dumps(document, sort_keys=True, allow_nan=False)}


def tensors_sha256(tensors: dict[str, np.ndarray]) -> str:
    """The SHA-256 over the tensors in the order of their names: of each its name, its shape and its values' bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{list(tensor.shape)}\0".encode())
        digest.update(np.asarray(tensor, dtype="<f4", order="C").data)
    return digest.hexdigest()


def from_metadata(path: Path, metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> Bundle:
    """Rebuild a bundle from what `to_metadata` gave. Raises BundleError, naming `path`, with what is wrong.

    Fields that an earlier version did not write get their defaults; those that only a later one knows are kept in
    `Bundle.unknown`.
    """
    document = _parse_document(path, metadata)
    try:
        tensors = _migrate(document, tensors)
        unknown: dict[str, Any] = {name: document[name] for name in document.keys() - _TOP_LEVEL}
        sections = {}
        for name, kind in _SECTIONS.items():
            if name in _OPTIONAL and name not in document:
                continue
            known = {field.name for field in fields(kind)}
            unknown |= {f"{name}.{key}": document[name][key] for key in document[name].keys() - known}
            sections[name] = build_record(
                kind, {key: document[name][key] for key in document[name].keys() & known}, name
            )
        grid = build_record(tuple[int, int], document["grid"], "grid")
        bundle = Bundle(grid=grid, tensors=tensors, unknown=dict(sorted(unknown.items())), **sections)
    except KeyError as error:
        raise _damaged(path, f"in its description, {error.args[0]} is missing") from error
    except (AttributeError, TypeError, ValueError, OverflowError, UsageError) as error:
        raise _damaged(path, f"in its description, {str(error).rstrip('.')}") from error
    _check_values(path, bundle)
    return bundle


def _migrate(document: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring the description of an earlier format to the present one, in place; return the tensors likewise."""
    if document["format"] < 2:  # before 0.2
        document["config"]["normalize_positions"] = document["config"].pop("relative")
        tensors = {"baseline" if name == "usual" else name: tensor for name, tensor in tensors.items()}
    document["config"] = BEFORE_THEY_WERE_FIELDS | document["config"]
    return tensors


def check_free(path: Path, force: bool) -> None:
    """Raise InputError if `path` is a folder, exists and `force` is not set, or lies where nothing can be written."""
    if path.is_dir():
        raise InputError(f"{path} is a folder.", "Name a file with --out.")
    if path.exists() and not force:
        raise InputError(f"{path} exists already.", "Add --force to overwrite it, or name another file with --out.")
    folder = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if folder is None:
        raise InputError(f"Cannot write {path}: there is no drive {path.absolute().anchor}.", _ELSEWHERE)
    if not folder.is_dir():
        raise InputError(f"Cannot write {path}: {folder} is a file.", _ELSEWHERE)
    try:
        tempfile.TemporaryFile(dir=folder).close()  # tried, because permissions alone tell little on Windows
    except OSError as error:
        raise InputError(f"Cannot write {path}: {folder} is not writable.", _ELSEWHERE) from error


def load_bundle(path: str | Path) -> Bundle:
    """Read a bundle; everything in it is checked before it is used. Raises BundleError with what is wrong."""
    path = Path(path)
    check_there(path)
    try:
        _check_header_size(path)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            document = _parse_document(path, metadata)
            _check_types(path, file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        reason = printable(str(error), MAX_REASON)
        raise BundleError(f"{path} is no whole safetensors file: {reason}.", _REFIT) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}.", _REFIT) from error
    bundle = from_metadata(path, metadata, tensors)
    _check_tensors(path, bundle)
    # Earlier versions wrote no digest.
    if "tensors_sha256" in document and document["tensors_sha256"] != tensors_sha256(tensors):
        raise _damaged(path, "its tensors are not those that were written (their SHA-256 differs)")
    return bundle


def read_description(path: Path) -> Bundle:
    """Read a bundle's description alone, quickly: it has no tensors. Raises BundleError with what is wrong."""
    check_there(path)
    try:
        _check_header_size(path)
        with safe_open(path, framework="numpy") as file:
            return from_metadata(path, file.metadata() or {}, {})
    except SafetensorError as error:
        reason = printable(str(error), MAX_REASON)
        raise BundleError(f"{path} is no whole safetensors file: {reason}.", _REFIT) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}.", _REFIT) from error


def check_there(path: Path) -> None:
    """Raise BundleError unless there is a regular file at `path` that may be a model; it is not opened."""
    try:
        if path.is_dir():
            raise BundleError(f"{path} is a folder, not a model.", "Name the .safetensors file that `cfa fit` wrote.")
        if not path.exists():
            raise BundleError(
                f"There is no model at {path}.", "Make one with `cfa fit GOOD_DIR`, or name it with --model."
            )
        if not path.is_file():  # reading a pipe or a device might never end
            raise BundleError(f"{path} is a pipe, a socket or a device, not a file.", _REFIT)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}.", _REFIT) from error
    if path.suffix.lower() == EXPORT_SUFFIXES["torch"]:
        raise BundleError(
            f"{path} is a .pt2 file, which cfa writes but does not run: torch.export.load runs code that is in it.",
            "Use the bundle that it was exported from, or `cfa export --format onnx`.",
        )


def _check_header_size(path: Path) -> None:
    """Refuse a hostile header before the library reads it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= size - 8:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise BundleError(f"{path} is an image, not a model.", "Name the .safetensors file that `cfa fit` wrote.")
        raise BundleError(f"{path} is no whole safetensors file (it is {size} bytes long).", _REFIT)
    if length > MAX_HEADER_BYTES:
        raise BundleError(f"{path} has a header of {length} bytes, more than any model of cfa.", _REFIT)


def _parse_document(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        raise BundleError(
            f"{path} is a safetensors file, but no model of cfa.",
            "Backbone weights go to `cfa fit --weights`; --model takes what `cfa fit` wrote.",
        )
    try:
        document = json.loads(metadata[METADATA_KEY], parse_constant=_refuse_constant)
        version = document["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, "its description is no JSON object with a format") from error
    if not isinstance(version, int) or version < 1:
        raise _damaged(path, f"its format is {version!r}")
    if version > FORMAT:
        writer = printable(str(document.get("cfa", "of a newer version")), 20)
        raise BundleError(
            f"{path} was written by cfa {writer} in format {version}; this is cfa {__version__}, which reads up to "
            f"format {FORMAT}.",
            f"Upgrade with `pipx upgrade cfa-cli` to cfa {writer} or later.",
        )
    assert isinstance(document, dict)
    return document


def _check_types(path: Path, file: Any) -> None:
    for name in file.keys():  # noqa: SIM118
        kind = file.get_slice(name).get_dtype()
        if kind != "F32":
            raise BundleError(f"{path} is damaged: tensor {name} has type {kind}, expected F32.", _REFIT)


def _check_tensors(path: Path, bundle: Bundle) -> None:
    for name in ("descriptor.weight", "descriptor.bias", "bank", "radius", "baseline"):
        if name not in bundle.tensors:
            raise _damaged(path, f"tensor {name} is missing")
    shapes = {name: tensor.shape for name, tensor in bundle.tensors.items()}
    weight, bank = shapes["descriptor.weight"], shapes["bank"]
    if len(weight) != 4 or weight[2:] != (1, 1) or weight[1] < 3:
        raise _damaged(path, f"descriptor.weight has shape {weight}, expected (D, C + 2, 1, 1)")
    if shapes["descriptor.bias"] != weight[:1]:
        raise _damaged(path, f"descriptor.bias has shape {shapes['descriptor.bias']}, expected {weight[:1]}")
    if len(bank) != 2 or bank[1] != weight[0] or bank[0] < 1:
        raise _damaged(path, f"bank has shape {bank}, expected (M, {weight[0]})")
    if shapes["radius"] != ():
        raise _damaged(path, f"radius has shape {shapes['radius']}, expected a single number")
    if shapes["baseline"] != bundle.grid:
        raise _damaged(path, f"baseline has shape {shapes['baseline']}, expected {bundle.grid}")
    if not (bundle.tensors["baseline"] > 0).all():
        raise _damaged(path, "tensor baseline holds values that are not positive")
    if (keep := bundle.tensors.get("keep")) is not None:  # it is there where something is ignored
        if keep.shape != bundle.geometry.input_size:
            raise _damaged(path, f"keep has shape {keep.shape}, expected {bundle.geometry.input_size}")
        if not np.isin(keep, (0, 1)).all() or not keep.any():
            raise _damaged(path, "tensor keep holds other values than 0 and 1, or keeps nothing")
    if bundle.backbone.precision == "int8":  # the largest input of each convolution
        ranges = bundle.tensors.get("ranges")
        if ranges is None or ranges.ndim != 1 or not (ranges >= np.finfo(np.float32).tiny).all():
            raise _damaged(path, "tensor ranges, which int8 needs, is missing or holds values that are not positive")
    neighbours = bundle.config.score_neighbours
    if neighbours > bank[0]:
        raise _damaged(path, f"it has {bank[0]} centroids, fewer than its {neighbours} neighbours")
    for name, tensor in bundle.tensors.items():
        if not np.isfinite(tensor).all():
            raise _damaged(path, f"tensor {name} holds NaN or infinity")


def _check_values(path: Path, bundle: Bundle) -> None:
    sides = (*bundle.geometry.size, *bundle.geometry.input_size, *bundle.grid)
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise _damaged(path, f"its sizes {sides} are out of range")
    if any(i > s for i, s in zip(bundle.geometry.input_size, bundle.geometry.size, strict=True)):
        raise _damaged(path, "its crop is larger than its size")
    if not min(bundle.geometry.std) > 0:
        raise _damaged(path, "its input's standard deviation is not positive")
    calibration = bundle.calibration
    extent = calibration.pixel_threshold if calibration.extent_threshold is None else calibration.extent_threshold
    if not calibration.threshold > 0 or not calibration.pixel_threshold > 0 or not extent > 0:
        raise _damaged(path, "its threshold is not positive")
    if not calibration.display_low < calibration.display_high or not calibration.holdout_scores:
        raise _damaged(path, "its calibration is incomplete")
    if calibration.min_area < 1:
        raise _damaged(path, "its smallest region has no area")
    low, high = calibration.threshold_low, calibration.threshold_high
    if (low is None) != (high is None) or (low is not None and high is not None and not 0 < low <= high):
        raise _damaged(path, "its threshold's interval is none")
    images = {} if bundle.holdout is None else asdict(bundle.holdout)
    if not images.get("names"):  # of an earlier version
        images.pop("names", None)
    if any(len(values) != len(calibration.holdout_scores) for values in images.values()):
        raise _damaged(path, "its held-out images have more or fewer scores than statistics")
    if len(bundle.backbone.name) > MAX_BACKBONE_NAME or len(bundle.backbone.layers) > MAX_LAYERS:
        raise _damaged(path, "its backbone's name or list of layers is too long")
    if bundle.config.score_neighbours < 1 or not 0 <= bundle.config.sigma <= max(bundle.geometry.input_size):
        raise _damaged(path, "its configuration is out of range")


def _damaged(path: Path, reason: str) -> BundleError:
    """The error for a file with something wrong in it; `reason` may hold names and values from the file."""
    return BundleError(f"{path} is damaged: {printable(reason, MAX_REASON)}.", _REFIT)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
