"""The verb `export`: a model as one graph for another runtime, verified before it has its name."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.onnx import ONNXProgram

from cfa_cli import __version__
from cfa_cli.atomic import atomic_paths, scratch_folder
from cfa_cli.bundle import check_free, load_bundle, to_metadata
from cfa_cli.download import sha256_of
from cfa_cli.engine.export_options import ExportOptions, check_options
from cfa_cli.engine.network import build_network
from cfa_cli.engine.runtimes import (
    EXPORT_KEY,
    KEEP_KEY,
    TORCH_FILE,
    WEIGHTS_KEY,
    import_extra,
    keep_to_text,
    load_exported,
    prepare,
)
from cfa_cli.engine.scorer import NetworkScorer
from cfa_cli.engine.thresholds import without_min_area
from cfa_cli.engine.verify import Verification, read_images, render_images, verify
from cfa_cli.errors import CfaError, ExportError
from cfa_cli.model.backbone import Backbone
from cfa_cli.model.deployed import INPUT, OUTPUTS, DeployedNetwork
from cfa_cli.model.deployed_quantised import Operator
from cfa_cli.model.network import Network
from cfa_cli.model.quantised import multiplies_bytes
from cfa_cli.records import Bundle, ExportFormat, NumberType, Progress, ProgressCallback

TOLERANCE = 1e-4  # of scores and map values: see `Verification.max_relative`
HALF_TOLERANCE = 1e-2
INT8_TOLERANCE = 2e-2  # a value between two bytes may become either: see `model.deployed_quantised`
OPERATORS: dict[ExportFormat, Operator] = {"onnx": "ConvInteger", "openvino": "DequantizeLinear"}  # of int8 backbones
ONNX_LOOP_TORCH = (2, 14)  # the first release that exports `while_loop` to ONNX
QUANTIZATION_IMAGES = 300  # at most, for INT8

Write = Callable[[Path, dict[str, str]], None]  # to a path, with metadata


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote."""

    files: tuple[Path, ...]
    bytes: int  # of all files
    options: ExportOptions
    int8: bool  # the backbone's numbers: the model's own, or those that `quantize` made
    verification: Verification
    note: str | None = None  # in what it does not do what the bundle does


def export(
    model: str | Path,
    out: str | Path,
    options: ExportOptions | None = None,
    *,
    images: Path | None = None,
    quantize: Path | None = None,
    force: bool = False,
    progress: ProgressCallback = lambda step: None,
) -> ExportResult:
    """Export the bundle at `model` to `out` and compare its scores and maps with this tool's in the same numbers.

    They are compared on some of the images in the folder `images`, else on those in `quantize`, else on drawn ones.
    `quantize`, a folder of good images, makes an OpenVINO model INT8; its error is measured, not bounded.

    Raises ExportError, leaving nothing, if the export fails, a package is missing, or an error is over the tolerance;
    BundleError, UsageError, and InputError for folders without images and an `out` that exists (unless `force`).
    """
    options, out = options or ExportOptions(), Path(out)
    check_options(options, out, int8=quantize is not None)
    for file in [out, out.with_suffix(".bin")] if options.format == "openvino" else [out]:
        check_free(file, force)
    bundle, note = without_min_area(load_bundle(model))
    precision: NumberType = "float32" if quantize else _number_type(bundle, options)
    note = " ".join(filter(None, [note, _note(bundle, precision)])) or None
    folder = images or quantize
    pictures = read_images(folder, bundle.training) if folder else render_images(bundle.geometry)
    progress(Progress("exporting", 0, 1, unit="models"))
    description = {
        "cfa": __version__,
        **asdict(options),
        "int8": precision == "int8" or quantize is not None,
        "precision": precision,
        "bundle_sha256": sha256_of(Path(model)),
        "note": note,
    }
    network = build_network(bundle)
    ranges = torch.from_numpy(bundle.tensors["ranges"]) if precision == "int8" else None
    reference = NetworkScorer(copy.deepcopy(network), bundle.geometry, "cpu", precision, ranges=ranges)
    write = _convert(network, bundle, options, ranges, quantize)
    progress(Progress("exporting", 1, 1, unit="models"))
    with scratch_folder(out) as place:
        built, verified = place / "built" / out.name, place / "verified" / out.name
        metadata = to_metadata(bundle)
        if "keep" in bundle.tensors:
            metadata[KEEP_KEY] = keep_to_text(bundle.tensors["keep"])
        _write(write, built, metadata | {EXPORT_KEY: json.dumps(description)})
        try:
            # The runtime is let go before the files are: Windows removes none that is mapped into memory.
            found = verify(
                load_exported(built, options.format)[1],
                reference,
                pictures,
                bundle.calibration.threshold,
                progress,
                drawn=folder is None,
            )
        except Exception as error:  # each runtime has its own exceptions
            raise ExportError(f"The exported model does not run: {error}", "Try another --format.") from error
        _check(found, math.inf if quantize else _tolerance(options, precision))
        # The same graph again: what was found goes into its metadata.
        _write(write, verified, metadata | {EXPORT_KEY: json.dumps(description | {"verification": asdict(found)})})
        made = sorted(verified.parent.iterdir())  # OpenVINO's weights (.bin) before its graph (.xml)
        files = tuple(out.with_suffix(file.suffix) for file in made)
        with atomic_paths(*files) as temporaries:
            for file, temporary in zip(made, temporaries, strict=True):
                shutil.copyfile(file, temporary)
    size = sum(file.stat().st_size for file in files)
    return ExportResult(files, size, options, bool(description["int8"]), found, note)


def _number_type(bundle: Bundle, options: ExportOptions) -> NumberType:
    """Return what an export's backbone computes in: int8 where the model's and its runtime do, and this processor."""
    int8 = bundle.backbone.precision == "int8" and options.format in OPERATORS and options.precision == "auto"
    return "int8" if int8 and multiplies_bytes(torch.device("cpu")) else "float32"


def _note(bundle: Bundle, precision: NumberType) -> str | None:
    fitted = bundle.backbone.precision
    if fitted in (None, precision):
        return None
    return (
        f"The export computes in {precision}, the model in {fitted}: its scores differ a little from those that chose "
        "the threshold."
    )


def _tolerance(options: ExportOptions, precision: NumberType) -> float:
    return INT8_TOLERANCE if precision == "int8" else HALF_TOLERANCE if options.half else TOLERANCE


def _convert(
    network: Network, bundle: Bundle, options: ExportOptions, ranges: Tensor | None, quantize: Path | None
) -> Write:
    """Return what writes the converted model, with metadata. Raises ExportError."""
    needed = {
        "onnx": ["onnx", "onnxscript", "onnxruntime"],
        "openvino": ["onnx", "onnxscript", "openvino"],
        "torch": [],
    }
    for module in needed[options.format]:
        import_extra(module, options.format, ExportError)
    if needed[options.format] and tuple(int(part) for part in torch.__version__.split(".")[:2]) < ONNX_LOOP_TORCH:
        raise ExportError(
            f"Exporting to {options.format} needs torch {'.'.join(map(str, ONNX_LOOP_TORCH))} or later, which writes "
            f"loops; this is torch {torch.__version__}.",
            "Upgrade torch, or use --format torch.",
        )
    try:
        with _quiet():
            program = _trace(network, bundle, options, ranges)
            if options.format == "onnx":
                return _to_onnx(program, options)
            if options.format == "openvino":
                return _to_openvino(program, bundle, options, quantize)
            return _to_torch(program)
    except CfaError:
        raise
    except Exception as error:  # the exporters have no exceptions of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"The model cannot be exported to {options.format}: {reason.rstrip('.')}.", "Try another --format."
        ) from error


def _trace(network: Network, bundle: Bundle, options: ExportOptions, ranges: Tensor | None) -> ExportedProgram:
    geometry, calibration, backbone = bundle.geometry, bundle.calibration, network.backbone
    if ranges is not None and isinstance(backbone, Backbone):
        backbone.quantise(ranges)
    deployed = DeployedNetwork(
        network,
        geometry,
        calibration.threshold,
        calibration.pixel_threshold,
        resize=options.resize,
        half=options.half,
        operator=OPERATORS.get(options.format),
    )
    count = 2 if options.dynamic_batch else 1  # an example of one would fix the batch at one
    if options.resize:
        example = torch.zeros(count, 131, 97, 3, dtype=torch.uint8)
    else:
        example = torch.zeros(count, 3, *geometry.input_size)
    with torch.no_grad():
        return torch.export.export(deployed, (example,), dynamic_shapes=_dynamic_shapes(options))


def _dynamic_shapes(options: ExportOptions) -> tuple[dict[int, Any]]:
    shape: dict[int, Any] = {0: Dim("batch", min=1, max=4096)} if options.dynamic_batch else {}
    if options.resize:
        shape |= {1: Dim("height", min=2, max=65536), 2: Dim("width", min=2, max=65536)}
    return (shape,)


def _convert_to_onnx(program: ExportedProgram, options: ExportOptions) -> ONNXProgram:
    exported = torch.onnx.export(
        program,
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        opset_version=options.opset,
        dynamic_shapes=_dynamic_shapes(options),  # for the dimensions' names
        verbose=False,
    )
    assert exported is not None
    return exported


def _to_onnx(program: ExportedProgram, options: ExportOptions) -> Write:
    exported = _convert_to_onnx(program, options)

    def write(path: Path, metadata: dict[str, str]) -> None:
        exported.model.metadata_props.update(metadata)
        exported.save(path, external_data=False)

    return write


def _to_openvino(program: ExportedProgram, bundle: Bundle, options: ExportOptions, quantize: Path | None) -> Write:
    openvino = import_extra("openvino", "openvino", ExportError)
    # By way of ONNX: OpenVINO reads no loop of torch's whose turns differ in shape.
    model = openvino.Core().read_model(_convert_to_onnx(program, options).model_proto.SerializeToString())
    if quantize is not None:
        nncf = import_extra("nncf", "nncf", ExportError)
        inputs = [
            prepare(image, bundle.geometry, options.resize)[None].numpy()
            for image in read_images(quantize, bundle.training, QUANTIZATION_IMAGES)
        ]
        # Distances are differences of large numbers: the descriptor and the search stay in float32.
        scope = nncf.IgnoredScope(types=["MatMul"], validate=False)
        model = nncf.quantize(model, nncf.Dataset(inputs), subset_size=len(inputs), ignored_scope=scope)

    def write(path: Path, metadata: dict[str, str]) -> None:
        openvino.save_model(model, str(path), compress_to_fp16=False)
        # The graph (.xml) names the weights (.bin) that belong to it: saved again, the latter are the same.
        for key, text in {**metadata, WEIGHTS_KEY: sha256_of(path.with_suffix(".bin"))}.items():
            model.set_rt_info(text, [key])
        openvino.save_model(model, str(path), compress_to_fp16=False)

    return write


def _to_torch(program: ExportedProgram) -> Write:
    def write(path: Path, metadata: dict[str, str]) -> None:
        torch.export.save(program, str(path), extra_files={TORCH_FILE: json.dumps(metadata)})

    return write


def _check(found: Verification, tolerance: float) -> None:
    """Raise ExportError for results that lie too far apart, or are no numbers."""
    if not found.max_relative <= tolerance:
        raise ExportError(
            f"The exported model does not score like this one: the relative error is {found.max_relative:.2g}, more "
            f"than {tolerance:g}; nothing was written.",
            "Leave out --half, add --precision float32, or try another --format.",
        )


def _write(write: Write, path: Path, metadata: dict[str, str]) -> None:
    path.parent.mkdir()
    with _quiet():
        write(path, metadata)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own lines and warnings off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
