"""Two backbones in one model: their maps, scales, weights and layers, from fit to export."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from cfa_cli import FitConfig, fit, load_bundle, predict, save_bundle
from cfa_cli.data.images import read_image
from cfa_cli.engine.export import ExportOptions, export
from cfa_cli.engine.features import FeatureStore
from cfa_cli.errors import BundleError, UsageError, WeightsError
from cfa_cli.geometry import to_input
from cfa_cli.model import tiles
from cfa_cli.model.backbone import Backbone
from cfa_cli.model.joined import JoinedBackbone, make_backbone, restore_backbone
from cfa_cli.model.tiles import extract_levels
from cfa_cli.weights.loading import check_spec, specs_of
from tests.conftest import assert_refused

SECOND = "lcnet_035"
NAME = f"resnet18+{SECOND}"


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """Weights of the second backbone, drawn at random."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "second.safetensors"
    save_file(timm.create_model(SECOND).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def config(second):
    return FitConfig(
        backbone=NAME, weights=f"embedded+{second}", size=(64, 64), epochs=1, max_fpr=0.25, precision="float32"
    )


@pytest.fixture(scope="module")
def bundle(config, good_dir):
    return fit(good_dir, config).bundle


def test_maps_are_those_of_each_with_its_own_normalisation_and_scale():
    parts = [Backbone("resnet18"), Backbone(SECOND)]
    parts[1].mean, parts[1].std = (0.5, 0.4, 0.3), (0.2, 0.5, 1.0)
    both = JoinedBackbone(parts)
    both.scales.copy_(torch.tensor([1.0, 0.5, 2.0, 4.0, 0.25, 8.0]))
    image = torch.rand(1, 3, 64, 96)

    def normalised(part):
        return (image - torch.tensor(part.mean).view(3, 1, 1)) / torch.tensor(part.std).view(3, 1, 1)

    expected = [level for part in parts for level in part(normalised(part))]
    for found, own, scale in zip(both(normalised(parts[0])), expected, both.scales, strict=True):
        assert torch.allclose(found, own * scale, rtol=1e-4, atol=1e-4)
    assert both.channels == (64, 128, 256, *parts[1].channels)
    assert both.map_shapes((64, 96)) == [tuple(level.shape[1:]) for level in expected]


def test_each_map_spreads_about_as_far_as_the_first(bundle, good_dir):
    """By the plain definition, over the good images: within the root of two that powers of two leave."""
    scales = bundle.tensors["backbone.scales"]
    assert scales[0] == 1
    assert np.array_equal(scales, 2.0 ** np.round(np.log2(scales)))
    weights = {n.removeprefix("backbone."): torch.from_numpy(t) for n, t in bundle.tensors.items() if "backbone" in n}
    backbone = restore_backbone(NAME, bundle.backbone.layers, weights)
    images = torch.stack([to_input(read_image(p), bundle.geometry) for p in sorted(good_dir.rglob("*.png"))])
    spreads = []
    with torch.inference_mode():
        for level in extract_levels(backbone, images):
            values = level.permute(0, 2, 3, 1).flatten(0, 2)
            spreads.append(float((values - values.mean(0)).square().sum(1).mean().sqrt()))
    assert all(0.65 < spread / spreads[0] < 1.55 for spread in spreads)


def test_a_store_of_maps_is_scaled_in_place():
    store = FeatureStore([(2, 4, 4), (3, 2, 2)], 3)
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(3, 2, 4, 4, generator=generator), 10 * torch.randn(3, 3, 2, 2, generator=generator)]
    store.append(levels)
    scales = store.balance([0, 2])
    assert scales[0] == 1
    assert scales[1] in (1 / 8, 1 / 16)
    for found, level, scale in zip(store.levels([0, 1, 2], torch.device("cpu")), levels, scales, strict=True):
        assert torch.equal(found, level.half() * scale)


def test_predict_scores_what_fit_kept(bundle, good_dir, tmp_path):
    save_bundle(bundle, tmp_path / "m.safetensors")
    again = load_bundle(tmp_path / "m.safetensors")
    assert again.backbone.name == NAME
    found = {each.source.name: each.score for each in predict(again, good_dir)}
    kept = dict(zip(again.holdout.names, again.calibration.holdout_scores, strict=True))
    for name, score in kept.items():
        assert found[name] == pytest.approx(score, rel=0.1)  # its own part in the baseline is the difference
    assert again.backbone.weights == "embedded + file: second.safetensors"
    assert [layer[:2] for layer in again.backbone.layers] == ["0."] * 3 + ["1."] * 3


def test_an_export_scores_the_same(bundle, tmp_path):
    pytest.importorskip("onnxruntime")
    save_bundle(bundle, tmp_path / "m.safetensors")
    result = export(tmp_path / "m.safetensors", tmp_path / "m.onnx", ExportOptions("onnx"))
    assert result.verification.max_relative < 1e-4


def test_large_images_are_taken_in_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 256)
    monkeypatch.setattr(tiles, "WHOLE_PIXELS", 256**2)
    backbone, image = make_backbone(NAME, None, None), torch.rand(1, 3, 320, 512)
    assert tiles.plan_tiles(backbone, 320, 512) is not None
    with torch.inference_mode():
        for found, whole in zip(extract_levels(backbone, image), tiles._pooled_maps(backbone, image), strict=True):
            assert torch.allclose(found, whole, atol=1e-3 * float(whole.abs().max()))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["4", "8"], ("0.layer1", "0.layer2", "1.blocks.1", "1.blocks.2")),
        (["0.layer2", "1.blocks.3.1"], ("0.layer2", "1.blocks.3.1")),
        (["0.layer1.0+0.layer1.1", "1.blocks.3.1"], ("0.layer1.0+0.layer1.1", "1.blocks.3.1")),
    ],
)
def test_layers_say_whose_they_are(layers, expected):
    assert make_backbone(NAME, layers, None).layers == expected


@pytest.mark.parametrize("layer", ["layer1", "0.layer1+1.blocks.1", "2.layer1", "0.layer1+layer2"])
def test_layers_that_do_not(layer):
    with pytest.raises(UsageError, match="Of which backbone"):
        make_backbone(NAME, [layer], None)


def test_the_first_must_have_the_finest_maps():
    with pytest.raises(UsageError, match="not the finest"):
        make_backbone(f"resnet18+{SECOND}", ["0.layer2", "1.blocks.1.0"], None).map_shapes((64, 64))


def test_weights_are_given_for_both_or_one_each(second):
    assert specs_of("auto", NAME) == ("auto", "auto")
    assert specs_of(f"embedded+{second}", NAME) == ("embedded", str(second))
    assert specs_of("a+b.pth", "resnet18") == ("a+b.pth",)
    for spec in (str(second), "auto+auto+auto"):
        with pytest.raises(WeightsError, match="not for two backbones"):
            check_spec(spec, NAME)
    with pytest.raises(WeightsError, match=r"no weights file none\.pth"):
        check_spec("auto+none.pth", NAME)


@pytest.mark.parametrize("name", ["resnet18+", "+resnet18", "resnet18+resnet34+resnet50"])
def test_names_of_neither_one_nor_two(name):
    with pytest.raises(UsageError, match="neither one name nor two"):
        FitConfig(backbone=name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone.scales", None),
        ("backbone.scales", np.ones(5, np.float32)),
        ("backbone.scales", np.array([1, 1, 1, 1, 0, 1], np.float32)),
        ("backbone.1.conv_stem.weight", None),
        ("backbone.0.conv1.weight", np.ones((2, 2), np.float32)),
    ],
)
def test_a_model_whose_backbones_are_damaged(bundle, good_dir, name, value):
    tensors = {key: tensor for key, tensor in bundle.tensors.items() if key != name}
    with pytest.raises(BundleError, match="backbone cannot be rebuilt"):
        list(predict(replace(bundle, tensors=tensors if value is None else tensors | {name: value}), good_dir))


def test_a_model_that_names_many_backbones_is_refused(bundle, good_dir):
    hostile = replace(bundle, backbone=replace(bundle.backbone, name="+".join(["resnet18"] * 9)))
    with pytest.raises(BundleError, match="neither one name nor two"):
        list(predict(hostile, good_dir))


def test_the_command(cfa, good_dir, second):
    done = cfa("fit", good_dir, "--backbone", NAME, "--weights", f"embedded+{second}", "--size", 32, "--quiet")
    assert done.code == 0, done.err
    shown = cfa("info").out
    assert f"{NAME} (0.layer1, 0.layer2, 0.layer3, 1." in shown
    assert "embedded + file: second.safetensors (sha256 0fc54a3be358 + " in shown
    assert_refused(
        cfa("fit", good_dir, "--backbone", NAME, "--weights", second, "--out", "b.safetensors"),
        5,
        "is not for two backbones",
        "Give one for each",
    )
