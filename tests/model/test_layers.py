"""Which maps of a backbone are taken: by stride, by any module's name, and those of the paper's authors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from torch.nn.functional import avg_pool2d

from cfa_cli import fit, load_bundle, predict, save_bundle
from cfa_cli.config import PRESETS, FitConfig
from cfa_cli.engine.export import export
from cfa_cli.engine.export_options import ExportOptions
from cfa_cli.errors import UsageError
from cfa_cli.model.backbone import Backbone
from cfa_cli.model.descriptor import descriptor_channels
from cfa_cli.model.resnet import MEAN, PLANS, STD
from cfa_cli.model.tiles import extract_levels

STAGES = [[f"blocks.1.{i}" for i in range(5)], [f"blocks.2.{i}" for i in (2, 3, 4)], ["blocks.4.6"]]
AUTHORS = {  # modules whose maps are stacked; channels and sides of each at 224 px, of C and of D at gamma_d 1
    "vgg19_bn": ([["features.25"], ["features.38"], ["features.52"]], [(256, 56), (512, 28), (512, 7)], 1280, 1280),
    "efficientnet_b5": (STAGES, [(200, 56), (192, 28), (176, 14)], 568, 1136),
}


def hooked(model, names, images):
    """Copy the modules' outputs as a forward pass goes by."""
    seen = {}
    for name in names:
        copy = lambda module, inputs, output, name=name: seen.update({name: output.clone()})  # noqa: E731
        model.get_submodule(name).register_forward_hook(copy)
    with torch.inference_mode():
        model(images)
    return seen


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_maps(name):
    modules, shapes, channels, out_channels = AUTHORS[name]
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    backbone = Backbone(name, PRESETS["paper"].layers, model.state_dict())
    images = torch.randn(1, 3, 224, 224)
    seen = hooked(model, [each for group in modules for each in group], images)
    with torch.inference_mode():
        maps, pooled = backbone(images), extract_levels(backbone, images)
    assert [(m.shape[1], m.shape[2]) for m in maps] == shapes
    assert (sum(backbone.channels), descriptor_channels(name, backbone.channels, 1)) == (channels, out_channels)
    for level, of_pooled, group in zip(maps, pooled, modules, strict=True):
        expected = torch.cat([seen[each] for each in group], dim=1)
        torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-5)
        divisor = expected.shape[1] if name == "efficientnet_b5" else 1
        torch.testing.assert_close(of_pooled, avg_pool2d(expected, 3, 1, 1) / divisor, rtol=1e-4, atol=1e-5)


def test_elsewhere_the_authors_take_the_usual_maps():
    for name in ("resnet18", "wide_resnet50_2"):
        assert Backbone(name, ("authors",)).layers == Backbone(name).layers == ("layer1", "layer2", "layer3")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in PLANS), ("resnet18", torch.bfloat16), ("wide_resnet50_2", torch.bfloat16)],
)
def test_plain_resnets_are_timms_to_the_bit(name, dtype):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, zero_init_last=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as trained ones, whose every number counts
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    layers = ["2", "layer1", "8", "layer3", "32"]
    backbone = Backbone(name, layers, model.state_dict()).to(dtype).to(memory_format=torch.channels_last)
    model.to(dtype).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 50, 77, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = model.forward_intermediates(images, intermediates_only=True)
        actual = backbone(images)
    assert len(actual) == 5
    assert all(torch.equal(*maps) for maps in zip(actual, expected, strict=True))
    assert backbone.map_shapes((50, 77)) == [tuple(each.shape[1:]) for each in expected]
    assert backbone.channels == tuple(each.shape[1] for each in expected)
    config = model.pretrained_cfg
    assert (MEAN, STD) == (config["mean"], config["std"]) == (backbone.mean, backbone.std)
    own = {key for key in model.state_dict() if not key.startswith("fc.") and not key.endswith("num_batches_tracked")}
    assert backbone.weights().keys() == own
    assert not any(key.startswith("layer4") for key in Backbone(name).weights())


def test_any_module_by_its_name():
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False).eval()
    names = ["layer1.0.bn2", "layer2.0.act2", "layer2.1.conv1"]  # what follows bn2 adds to it in place
    images = torch.randn(2, 3, 64, 96)
    seen = hooked(model, names, images)
    backbone = Backbone("resnet18", ["layer2.0.act2+layer2.1.conv1", "layer1.0.bn2"], model.state_dict())
    assert backbone.layers == ("layer1.0.bn2", "layer2.0.act2+layer2.1.conv1")  # finest first
    assert backbone.channels == (64, 256)
    fine, coarse = backbone(images)
    torch.testing.assert_close(fine, seen["layer1.0.bn2"])
    torch.testing.assert_close(coarse, torch.cat([seen[name] for name in names[1:]], dim=1))
    assert set(backbone.weights()) < set(model.state_dict())
    assert not any(key.startswith(("layer3", "layer4", "fc", "layer2.1.conv2")) for key in backbone.weights())
    assert Backbone("resnet18", ["8", "layer1.1.act2"]).layers == ("layer1.1.act2", "layer2")


def test_a_model_of_named_modules_is_a_bundle_like_any_other(good_dir, tmp_path):
    pytest.importorskip("onnxruntime")
    layers = ("layer1.0", "layer2.0+layer2.1")
    config = FitConfig(weights="embedded", size=(64, 64), layers=layers, epochs=1, precision="float32")
    bundle = fit(good_dir, config).bundle
    assert (bundle.backbone.layers, bundle.tensors["descriptor.weight"].shape) == (layers, (160, 322, 1, 1))
    save_bundle(bundle, tmp_path / "model.safetensors")
    images = sorted(good_dir.glob("*.png"))[:3]
    expected = [prediction.score for prediction in predict(bundle, images)]
    loaded = predict(load_bundle(tmp_path / "model.safetensors"), images)
    assert [prediction.score for prediction in loaded] == expected
    result = export(tmp_path / "model.safetensors", tmp_path / "model.onnx", ExportOptions(), images=good_dir)
    assert result.verification.max_relative < 1e-4


@pytest.mark.parametrize(
    ("backbone", "layer", "message"),
    [
        ("resnet18", "layer9", "has no layer 'layer9'"),
        ("resnet18", "layer1+layer9", "has no layer 'layer9'"),
        ("resnet18", "layer1.0+layer2.0", "differ in size"),
        ("resnet18", "global_pool", "no feature map"),
        ("vit_tiny_patch16_224", "blocks.3.mlp", "no feature map"),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.1", "cannot be taken out"),
    ],
)
def test_layers_that_give_no_maps_are_refused(backbone, layer, message):
    with pytest.raises(UsageError, match=message):
        Backbone(backbone, [layer])


def test_the_preset_reaches_the_backbone(good_dir):
    paper = replace(PRESETS["paper"], weights="embedded", size=(64, 64), epochs=0)
    assert fit(good_dir, paper).bundle.backbone.layers == ("layer1", "layer2", "layer3")
