"""`cfa export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfa_cli.cli import options
from cfa_cli.records import EXPORT_SUFFIXES, ExportFormat, ExportPrecision

if TYPE_CHECKING:
    from cfa_cli.engine.export import ExportResult

GRAPH = "Graph"  # the panel of --help


def export(
    model: options.Model = options.DEFAULT_MODEL,
    format: Annotated[
        ExportFormat, typer.Option(metavar="NAME", help="onnx, openvino or torch: torch.export's .pt2.")
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The file to write.",
            show_default="the model's name",
            rich_help_panel=options.FILES,
        ),
    ] = None,
    with_resize: Annotated[
        bool,
        typer.Option(
            "--with-resize", help="Take uint8 images (batch, height, width, RGB) of any size.", rich_help_panel=GRAPH
        ),
    ] = False,
    dynamic_batch: Annotated[
        bool,
        typer.Option("--dynamic-batch", help="Take any number of images at once, not one.", rich_help_panel=GRAPH),
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(metavar="N", help="ONNX's operator set, 18 or later.", show_default="auto", rich_help_panel=GRAPH),
    ] = None,
    half: Annotated[
        bool,
        typer.Option(
            "--half", help="Store weights in 16 bits: half the size, still computed in float32.", rich_help_panel=GRAPH
        ),
    ] = False,
    precision: Annotated[
        ExportPrecision,
        typer.Option(
            metavar="TYPE",
            help="float32, or auto: int8 (for processors with VNNI) where the model is, in onnx and openvino.",
            rich_help_panel=GRAPH,
        ),
    ] = "auto",
    quantize: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Make an OpenVINO model INT8 by these good images, and measure what that costs.",
            rich_help_panel=GRAPH,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Images to verify with; without, some are drawn.", rich_help_panel="Input"),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write the model as one graph for ONNX Runtime, OpenVINO or torch, and check that it scores the same.

    The graph takes RGB images (batch, 3, height, width), float32 in 0..1, at the model's input size (or see
    --with-resize) and gives score, normalized_score, map, threshold and pixel_threshold. It is run and compared with
    this tool before the file gets its name. `cfa predict --model FILE` runs it too, except .pt2.
    """
    from cfa_cli.cli import render

    with render.Terminal(quiet, verbose) as terminal:
        terminal.note("Starting ...")
        from cfa_cli.bundle import check_there

        check_there(model)  # before torch is imported, which takes seconds
        from cfa_cli.engine.export_options import ExportOptions, check_options

        wanted = ExportOptions(format, with_resize, dynamic_batch, opset, half, precision)
        out = out or model.with_suffix(EXPORT_SUFFIXES[format])
        check_options(wanted, out, int8=quantize is not None)
        from cfa_cli.engine.export import export as run_export

        result = run_export(
            model,
            out,
            wanted,
            images=images,
            quantize=quantize,
            force=force,
            progress=terminal.progress,
        )
    if result.note:
        terminal.warn(result.note)
    if json:
        from dataclasses import asdict

        files = [str(file) for file in result.files]
        render.print_json({"command": "export", "model": str(model), **asdict(result), "files": files})
    else:
        _show(result)


def _show(result: ExportResult) -> None:
    from cfa_cli.cli import render

    found, options = result.verification, result.options
    takes = "RGB images of any size, uint8" if options.resize else "RGB images at the model's size, float32 in 0..1"
    many = "any number at once" if options.dynamic_batch else "one at a time"
    numbers = "float16 weights, " * options.half + ("int8 backbone" if result.int8 else "float32")
    render.print_facts(
        "Export",
        [
            ("Format", f"{options.format}, {numbers}"),
            *([("Runs on", "processors with VNNI; for others: --precision float32")] if result.int8 else []),
            ("Takes", f"{takes}, {many}"),
            (
                "Verified",
                f"on {found.images} {'drawn' if found.drawn else 'of the'} images, against this tool",
            ),
            (
                "Largest error",
                f"{found.max_absolute:.2g}, {found.max_relative:.2g} of the image's score or the threshold",
            ),
            ("Labels", f"{found.labels_agree} of {found.images} agree"),
            ("Time", f"{found.milliseconds:.1f} ms an image; this tool {found.tool_milliseconds:.1f} ms"),
            ("File", f"{', '.join(str(file) for file in result.files)} ({render.file_size(result.bytes)})"),
        ],
    )
