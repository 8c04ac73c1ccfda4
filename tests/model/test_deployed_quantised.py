"""8-bit backbones as graphs, run by their runtimes, against a slow version of the same arithmetic."""

import numpy as np
import pytest
import torch

from cfa_cli.model.deployed_quantised import DeployedResNet
from cfa_cli.model.quantised import multiplies_bytes
from tests.model.test_quantised import draw_images, make_backbone, ranges_of, slow_resnet18

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytestmark = pytest.mark.skipif(not multiplies_bytes(torch.device("cpu")), reason="no VNNI")


def run_onnx(path, images):
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return session.run(None, {"images": images})


def run_openvino(path, images):
    core = pytest.importorskip("openvino").Core()
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return list(compiled(images).values())


def export(name, layers, operator, path, images, scale=1.0):
    backbone = make_backbone(name, layers)
    ranges = ranges_of(backbone, images) * scale
    backbone.quantise(ranges)
    network = DeployedResNet(backbone.quantised, operator)
    torch.onnx.export(network, (images,), path, input_names=["images"], verbose=False)
    return backbone, ranges


@pytest.mark.parametrize(("operator", "run"), [("ConvInteger", run_onnx), ("DequantizeLinear", run_openvino)])
def test_the_maps_are_those_of_the_rounded_numbers(tmp_path, operator, run):
    images = draw_images(size=(66, 99)).contiguous()
    path, layers = str(tmp_path / "m.onnx"), ("4", "8")
    _, ranges = export("resnet18", layers, operator, path, images, scale=0.8)  # some values are cut
    expected = slow_resnet18(make_backbone("resnet18", layers), images, ranges)
    for ours, exact in zip(run(path, images.numpy()), expected, strict=True):
        # A value just between two bytes may be rounded either way in float32 and float64.
        difference = np.abs(ours - exact.numpy()) / float(exact.max())
        assert difference.max() < 0.02
        assert difference.mean() < 1e-4


@pytest.fixture
def one_thread():
    """oneDNN on several threads differs in the last digit, which 50 layers of random weights make a hundredth of."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("operator", "run"), [("ConvInteger", run_onnx), ("DequantizeLinear", run_openvino)])
def test_bottlenecks_are_the_tools(tmp_path, operator, run):
    images, path = draw_images(count=1, size=(32, 64)).contiguous(), str(tmp_path / "m.onnx")
    backbone, _ = export("resnet50", ("4", "16"), operator, path, images)
    for ours, tools in zip(run(path, images.numpy()), backbone(images), strict=True):
        assert np.linalg.norm(ours - tools.numpy()) < 2e-3 * float(tools.norm())
