"""Models in 8-bit integers: fit measures ranges, the bundle keeps them, predict computes with them everywhere."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from cfa_cli import FitConfig, fit
from cfa_cli.bundle import load_bundle, save_bundle
from cfa_cli.engine.scorer import load_scorer, score_sources
from cfa_cli.engine.thresholds import split_holdout
from cfa_cli.errors import BundleError, UsageError
from cfa_cli.model import device, quantised
from cfa_cli.records import Source

CONFIG = FitConfig(weights="embedded", size=(64, 64), stride=4, gamma_c=1, epochs=0, precision="int8", device="cpu")


@pytest.fixture(scope="module")
def paths(good_dir):
    return sorted(good_dir.glob("*.png"))[:8]


@pytest.fixture(scope="module")
def model(paths):
    return fit(paths, CONFIG).bundle


def scores(scorer, bundle, paths):
    sources = [Source(path, path.name) for path in paths]
    return [found.score for found in score_sources(scorer, sources, bundle.calibration)]


def test_the_bundle_keeps_what_predict_computes_with(model, paths, tmp_path):
    save_bundle(model, tmp_path / "model.safetensors")
    loaded = load_bundle(tmp_path / "model.safetensors")
    assert loaded.backbone.precision == "int8"
    np.testing.assert_array_equal(loaded.tensors["ranges"], model.tensors["ranges"])
    scorer = load_scorer(loaded, "cpu")
    assert scorer.network.backbone.quantised is not None
    batch = scores(scorer, loaded, paths[:3])
    assert batch == scores(load_scorer(model, "cpu"), model, paths[:3])
    np.testing.assert_allclose(scores(scorer, loaded, paths[:1]), batch[:1], rtol=1e-6)
    in_float = scores(load_scorer(model, "cpu", "float32"), model, paths[:3])
    np.testing.assert_allclose(in_float, batch, rtol=0.1)
    assert in_float != batch


def test_a_processor_without_byte_products_scores_the_same_and_says_so(model, paths, monkeypatch):
    expected = scores(load_scorer(model, "cpu"), model, paths)
    for place in (quantised, device):
        monkeypatch.setattr(place, "multiplies_bytes", lambda device: False)
    monkeypatch.setattr("cfa_cli.engine.scorer.multiplies_bytes", lambda device: False)
    scorer = load_scorer(model, "cpu")
    np.testing.assert_allclose(scores(scorer, model, paths), expected, rtol=5e-3)
    assert ["int8" in warning and "same" in warning for warning in scorer.warnings] == [True]


@pytest.mark.parametrize("layers", [None, ("layer1.0", "layer2")])
@pytest.mark.parametrize("native", [True, False])
def test_auto_is_int8_where_bytes_are_multiplied_and_the_backbone_is_plain(paths, monkeypatch, native, layers):
    monkeypatch.setattr(device, "multiplies_bytes", lambda device: native)
    monkeypatch.setattr(device, "native_bfloat16", lambda device: False)
    bundle = fit(paths[:4], replace(CONFIG, precision="auto", layers=layers)).bundle
    expected = "int8" if native and layers is None else "float32"
    assert (bundle.config.precision, bundle.backbone.precision) == ("auto", expected)
    assert ("ranges" in bundle.tensors) == (expected == "int8")


def test_ranges_come_from_training_images_alone(paths, tmp_path):
    """A held-out image that is far brighter changes nothing in them; a training image does."""
    pictures = [cv2.imread(str(path)) for path in paths]

    def ranges(bright):
        names = []
        for index, picture in enumerate(pictures):
            names.append(tmp_path / f"{index}.png")
            cv2.imwrite(str(names[-1]), 255 - picture // 8 if index == bright else picture)
        return fit(names, CONFIG).bundle.tensors["ranges"]

    usual = ranges(None)
    _, held_out = split_holdout(len(paths), CONFIG.holdout, CONFIG.seed)
    np.testing.assert_array_equal(ranges(held_out[0]), usual)
    trained = next(index for index in range(len(paths)) if index not in held_out)
    assert not np.array_equal(ranges(trained), usual)


@pytest.mark.parametrize(
    ("ranges", "reason"),
    [
        (None, "ranges"),
        ([], "ranges"),
        ([1.0], "ranges has shape"),
        ([[1.0] * 12], "ranges"),
        ([1.0] * 11 + [0.0], "not positive"),
        ([1.0] * 11 + [-1.0], "not positive"),
        ([1.0] * 11 + [1e-45], "not positive"),
        ([1.0] * 11 + [np.inf], "infinity"),
        ([1.0] * 11 + [np.nan], "not positive"),
    ],
)
def test_ranges_that_do_not_fit_are_damage(model, tmp_path, ranges, reason):
    tensors = dict(model.tensors)
    del tensors["ranges"]
    if ranges is not None:
        tensors["ranges"] = np.asarray(ranges, dtype=np.float32)
    save_bundle(replace(model, tensors=tensors), tmp_path / "damaged.safetensors")
    with pytest.raises(BundleError, match=reason):
        load_scorer(load_bundle(tmp_path / "damaged.safetensors"), "cpu")


def test_int8_is_refused_where_it_cannot_be(paths, model):
    with pytest.raises(UsageError, match="plain ResNets"):
        fit(paths, replace(CONFIG, layers=("layer1.0", "layer2")))
    tensors = {name: tensor for name, tensor in model.tensors.items() if name != "ranges"}
    in_float = replace(model, tensors=tensors, backbone=replace(model.backbone, precision="float32"))
    with pytest.raises(UsageError, match="fitted in it"):
        load_scorer(in_float, "cpu", "int8")
    with pytest.raises(UsageError, match="--compile"):
        load_scorer(model, "cpu").compile()


def test_weights_out_of_range_are_seen(model, paths):
    """A normalisation that float32 cannot fold in: the score is not finite, as it is in floating point."""
    name = "backbone.layer1.0.bn1.running_var"
    damaged = replace(model, tensors=model.tensors | {name: np.full_like(model.tensors[name], -1.0)})
    assert scores(load_scorer(damaged, "cpu"), model, paths[:2]) == [None, None]
