"""Exported models beside the tool: nodes, error, size and time, by image size, backbone, format and number type.

    python examples/benchmarks/export.py --good examples/parts/train/good --images examples/parts/test

Prints a Markdown table. Backbones other than resnet18 have random weights: what is measured here hardly depends on
them, and nothing needs to be fetched. Times are processor time of single images on one core, without decoding, measured
in turns with the tool, as ratios; so other work on the machine matters little.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from cfa_cli import FitConfig, fit, load_bundle, save_bundle
from cfa_cli.engine.export import export
from cfa_cli.engine.export_options import ExportOptions
from cfa_cli.engine.runtimes import load_exported
from cfa_cli.engine.scorer import load_scorer
from cfa_cli.engine.verify import read_images
from cfa_cli.errors import ExportError
from cfa_cli.geometry import to_input
from cfa_cli.model.backbone import Backbone
from cfa_cli.records import Geometry

BACKBONES = ("resnet18", "wide_resnet50_2", "vgg19_bn", "efficientnet_b5")
SIZES = (224, 512, 1024)
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
TURNS = 7


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
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="px; the first is every backbone's")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| Backbone | px | Format | Nodes | Largest error / score | MB | Time / tool's float32 | Time / tool's auto |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.backbones:
        for size in options.sizes if name == BACKBONES[0] else options.sizes[:1]:
            with tempfile.TemporaryDirectory() as folder:
                measure(name, size, options.good, options.images, Path(folder))


def measure(name: str, size: int, good: Path, images: Path, folder: Path) -> None:
    """Fit a model, export it to everything, and print a row each."""
    weights = "embedded" if name == "resnet18" else random_weights(name, good, folder / "weights.pth")
    model = folder / "model.safetensors"
    config = FitConfig(backbone=name, weights=weights, epochs=0, size=(size, size))
    save_bundle(fit(good, config).bundle, model)
    bundle = load_bundle(model)
    image = read_images(images, bundle.training, limit=1)[0]
    tools = [load_scorer(bundle, "cpu", precision) for precision in ("float32", "auto")]
    print(f"| {name} | {size} | the tool, {bundle.backbone.precision} | | | {model.stat().st_size / 1e6:.1f} | | |")
    variants = [ExportOptions(format, precision="float32") for format in SUFFIXES]
    if bundle.backbone.precision == "int8":
        variants += [ExportOptions("onnx"), ExportOptions("openvino")]
    if name == BACKBONES[0] and size == SIZES[0]:
        variants += [ExportOptions(format, half=True, precision="float32") for format in SUFFIXES]
    for variant in variants:
        out = folder / f"model{SUFFIXES[variant.format]}"
        kind = variant.format + ", half" * variant.half + ", int8" * (variant.precision == "auto")
        try:
            result = export(model, out, variant, images=images, force=True)
        except ExportError as failure:
            print(f"| {name} | {size} | {kind} | | {failure.message} | | | |", flush=True)
            continue
        found = result.verification
        error = f"{found.max_relative:.1e}; {found.labels_agree} of {found.images} labels"
        exported = load_exported(out, variant.format)[1]
        ratios = " | ".join(f"{ratio:.2f}" for ratio in compare([exported, *tools], image))
        nodes = count_nodes(out)
        print(f"| {name} | {size} | {kind} | {nodes} | {error} | {result.bytes / 1e6:.1f} | {ratios} |", flush=True)


def compare(scorers: list, image) -> list[float]:
    """Return the first scorer's processor time as a ratio to each of the others': medians, measured in turns."""
    inputs = [scorer.prepare(image)[None] for scorer in scorers]
    times: list[list[float]] = [[] for _ in scorers]
    for turn in range(TURNS + 1):
        for scorer, one, its in zip(scorers, inputs, times, strict=True):
            start = time.process_time()
            scorer(one)
            if turn:
                its.append(time.process_time() - start)
    first, *others = (statistics.median(its) for its in times)
    return [first / other for other in others]


def count_nodes(path: Path) -> int:
    """Count a graph's operations, those within its loop as well, without constants."""
    if path.suffix == ".onnx":
        import onnx

        def in_graph(graph) -> int:
            inner = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
            return len(graph.node) + sum(in_graph(part) for part in inner)

        return in_graph(onnx.load(path).graph)
    if path.suffix == ".xml":
        text = path.read_text(encoding="utf-8")
        return text.count("<layer ") - text.count('type="Const"')
    parts = torch.export.load(path).graph_module.modules()
    graphs = [part.graph for part in parts if isinstance(part, torch.fx.GraphModule)]
    return sum(node.op == "call_function" for graph in graphs for node in graph.nodes)


if __name__ == "__main__":
    main()
