"""Exported models beside the tool: error, size and time, by format and backbone.

    python examples/benchmarks/export.py --good examples/parts/train/good --images examples/parts/test

Prints a Markdown table. Backbones other than resnet18 have random weights: what is measured here hardly depends on
them, and nothing needs to be fetched. Times are medians of single images at 224 px, without decoding.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from cfa_cli import FitConfig, fit, load_bundle, save_bundle
from cfa_cli.engine.export import export
from cfa_cli.engine.export_options import ExportOptions
from cfa_cli.engine.scorer import load_scorer
from cfa_cli.engine.verify import read_images, time_scorer
from cfa_cli.errors import ExportError
from cfa_cli.geometry import to_input
from cfa_cli.model.backbone import Backbone
from cfa_cli.records import Geometry

BACKBONES = ("resnet18", "wide_resnet50_2", "vgg19_bn", "efficientnet_b5")
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


def random_weights(name: str, good: Path, path: Path) -> str:
    """Write a random state dict whose normalisation fits the images' activations, as training would leave it."""
    torch.manual_seed(0)
    backbone = Backbone(name)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    with torch.no_grad():
        images = [
            to_input(i, Geometry((224, 224), None, backbone.mean, backbone.std)) for i in read_images(good, None, 8)
        ]
        backbone(torch.stack(images))
    torch.save(backbone.weights(), path)
    return str(path)


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--good", type=Path, required=True, help="a folder of good images")
    parser.add_argument("--images", type=Path, required=True, help="a folder of images to compare on")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    options = parser.parse_args()
    print("| Backbone | Format | Largest error / score | Size, MB | ms an image |")
    print("| --- | --- | --- | --- | --- |")
    for name in options.backbones:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, options.good, options.images, Path(folder))


def measure(name: str, good: Path, images: Path, folder: Path) -> None:
    """Fit a model, export it to everything, and print a row each."""
    weights = "embedded" if name == "resnet18" else random_weights(name, good, folder / "weights.pth")
    model = folder / "model.safetensors"
    size = save_bundle(fit(good, FitConfig(backbone=name, weights=weights, epochs=0)).bundle, model)
    bundle = load_bundle(model)
    image = read_images(images, bundle.training, limit=1)[0]
    for precision in ("auto", "float32"):
        scorer = load_scorer(bundle, "cpu", precision)
        row(name, f"the tool, {precision}", "", size, time_scorer(scorer, scorer.prepare(image)))
    variants = [ExportOptions(format) for format in SUFFIXES]
    if name == BACKBONES[0]:  # what half and INT8 cost, once
        variants += [ExportOptions(format, half=True) for format in SUFFIXES] + [None]
    for options in variants:
        int8 = options is None
        options = options or ExportOptions("openvino")
        out = folder / f"model{SUFFIXES[options.format]}"
        kind = options.format + (", INT8" if int8 else ", half" if options.half else "")
        try:
            result = export(model, out, options, images=images, quantize=good if int8 else None, force=True)
        except ExportError as failure:
            print(f"| {name} | {kind} | {failure.message} | | |", flush=True)
            continue
        found = result.verification
        error = f"{found.max_relative:.1e}; {found.labels_agree} of {found.images} labels"
        row(name, kind, error, result.bytes, found.milliseconds)


def row(name: str, kind: str, error: str, size: int, milliseconds: float) -> None:
    """Print one row; `size` is in bytes."""
    print(f"| {name} | {kind} | {error} | {size / 1e6:.1f} | {milliseconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
