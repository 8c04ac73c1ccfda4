"""Backbones in 8-bit integers, against a slow version of the same arithmetic and against the float32 backbone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cfa_cli.model import quantised
from cfa_cli.model.backbone import Backbone
from cfa_cli.model.quantised import multiplies_bytes, recorded_ranges
from cfa_cli.model.tiles import plan_tiles

CPU = torch.device("cpu")
ENGINES = [
    pytest.param(False, id="simulated"),
    pytest.param(True, id="native", marks=pytest.mark.skipif(not multiplies_bytes(CPU), reason="no VNNI")),
]


def make_backbone(name, layers=None):
    """A backbone with random weights and normalisations that do something."""
    torch.manual_seed(0)
    backbone = Backbone(name, layers)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.2, 0.2)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return backbone


def draw_images(count=2, size=(64, 96)):
    """Normalised images, as a backbone takes them."""
    values = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((values - mean) / std).contiguous(memory_format=torch.channels_last)


def ranges_of(backbone, images):
    with recorded_ranges(backbone.model) as ranges:
        backbone(images)
    return ranges


def slow_resnet18(backbone, images, ranges):
    """The maps of strides 4 and 8 in float64, rounded where the docstring of `model.quantised` says."""
    model, steps = backbone.model.double(), iter((ranges.double() / 255).tolist())

    def convolve(convolution, norm, data, step, zero=0):
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = convolution.weight * factor.view(-1, 1, 1, 1)
        scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127
        sums = F.conv2d(data - zero, (weight / scale).round(), None, convolution.stride, convolution.padding)
        return sums * scale.view(-1, 1, 1) * step + (norm.bias - norm.running_mean * factor).view(-1, 1, 1)

    def to_bytes(values, step, zero=0):
        return (values / step + zero).round().clamp(0, 255)

    low, high = -0.485 / 0.229, (1 - 0.406) / 0.225
    step, maps, first = (high - low) / 255, [], True
    zero = round(-low / step)
    x = convolve(model.conv1, model.bn1, to_bytes(images.double(), step, zero), step, zero).relu()
    for layer in (model.layer1, model.layer2):
        for block in layer:
            one, two = next(steps), next(steps)
            data = to_bytes(x, one)
            if first:  # the stem gives bytes, which are pooled
                data, first = F.max_pool2d(data, 3, 2, 1), False
                x = data * one
            inner = to_bytes(convolve(block.conv1, block.bn1, data, one).relu(), two)
            shortcut = x if block.downsample is None else convolve(*block.downsample, data, one)
            x = (convolve(block.conv2, block.bn2, inner, two) + shortcut).relu()
        maps.append(x)
    return maps


@pytest.mark.parametrize("native", ENGINES)
def test_the_maps_are_those_of_the_rounded_numbers(monkeypatch, native):
    monkeypatch.setattr(quantised, "multiplies_bytes", lambda device: native)
    backbone, images = make_backbone("resnet18", ("4", "8")), draw_images(size=(66, 99))
    ranges = ranges_of(backbone, images) * 0.8  # some values are cut
    backbone.quantise(ranges)
    found = backbone(images)
    for ours, expected in zip(found, slow_resnet18(make_backbone("resnet18", ("4", "8")), images, ranges), strict=True):
        # A value just between two bytes may be rounded either way in float32 and float64.
        difference = (ours - expected).abs() / expected.max()
        assert ours.dtype == torch.float32
        assert difference.max() < 0.02
        assert difference.mean() < 1e-4


@pytest.mark.parametrize("native", ENGINES)
@pytest.mark.parametrize(("name", "layers"), [("resnet18", ("8", "16")), ("resnet50", None), ("resnet34", ("4", "32"))])
def test_the_maps_are_near_those_of_float32(monkeypatch, native, name, layers):
    monkeypatch.setattr(quantised, "multiplies_bytes", lambda device: native)
    backbone, images = make_backbone(name, layers), draw_images()
    expected = backbone(images)
    backbone.quantise(ranges_of(backbone, images))
    found = backbone(images)
    assert [each.shape for each in found] == [each.shape for each in expected]
    for ours, exact in zip(found, expected, strict=True):
        assert (ours - exact).norm() < 0.05 * exact.norm()
        assert not torch.equal(ours, exact)
    for exact, again in zip(expected, backbone.unquantised()(images), strict=True):
        assert torch.equal(exact, again)


@pytest.mark.skipif(not multiplies_bytes(CPU), reason="no VNNI")
def test_processors_with_and_without_byte_products_agree(monkeypatch):
    backbone, images = make_backbone("resnet18"), draw_images()
    ranges = ranges_of(backbone, images)
    maps = []
    for native in (True, False):
        monkeypatch.setattr(quantised, "multiplies_bytes", lambda device, native=native: native)
        backbone.quantise(ranges)
        maps.append(backbone(images))
    for one, other in zip(*maps, strict=True):
        assert (one - other).norm() < 1e-3 * other.norm()


def test_a_processor_whose_products_of_bytes_are_cut_is_not_taken_as_native(monkeypatch):
    """As AVX2 does: sums of two products are kept in 16 bits, at most 32,767."""

    class Cut(quantised._SimulatedConvolution):
        def __call__(self, data, **options):
            return super().__call__(data, **options).clamp(max=32_767 * 64 * 9 / 2 / 127)

    def ask(engine):
        monkeypatch.setattr(quantised, "_NativeConvolution", engine)
        monkeypatch.setattr(quantised.platform, "machine", lambda: "x86_64")
        return multiplies_bytes.__wrapped__(CPU)

    def missing(*arguments):
        raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qconv_prepack'")

    assert ask(quantised._SimulatedConvolution)
    assert not ask(Cut)
    assert not ask(missing)


@pytest.mark.skipif(not multiplies_bytes(CPU), reason="no VNNI")
@pytest.mark.parametrize("step", [0.25, 0.0137, 3e-12])
def test_one_pass_makes_the_bytes_that_rounding_and_cutting_make(step):
    """Halves go to the even byte; numbers past those of 32-bit integers, which are rounded to on the way, are cut."""
    convolution, norm = torch.nn.Conv2d(8, 8, 1, bias=False), torch.nn.BatchNorm2d(8)
    native = quantised._NativeConvolution(convolution.requires_grad_(False), norm.requires_grad_(False), step, 0)
    values = (torch.arange(8 * 10 * 8) / 2 * step).view(1, 8, 10, 8).contiguous(memory_format=torch.channels_last)
    for largest in (0.0, 1e8, 1e12, float("inf")):
        values[0, 3, 2, 1] = largest * step
        expected = np.clip(np.rint(values.numpy() * np.float32(1 / step)), 0, 255)
        found = native.quantise(values)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(found.numpy(), expected)


def test_asking_draws_no_random_numbers():
    torch.manual_seed(0)
    multiplies_bytes.__wrapped__(CPU)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 8), (8, 7)])
def test_bytes_are_pooled_as_floats_are(size):
    data = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, *size), dtype=np.uint8))
    expected = F.max_pool2d(data.float(), 3, 2, 1)
    assert torch.equal(quantised._max_pool(data).float(), expected)


def test_large_images_are_cut_as_in_float32():
    backbone = make_backbone("resnet18")
    plan = plan_tiles(backbone, 4096, 2100)
    backbone.quantise(ranges_of(backbone, draw_images()))
    assert plan is not None
    assert plan_tiles(backbone, 4096, 2100) == plan
