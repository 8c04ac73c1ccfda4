"""The verb `predict`: the calibrated score again, every kind of image, a bounded stream, and models that do not fit."""

from __future__ import annotations

import gc
import itertools
import shutil
import weakref
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cfa_cli import FitConfig, fit, load_bundle, predict, save_bundle
from cfa_cli.engine.scorer import BATCH_SIZE, load_scorer, score_sources
from cfa_cli.engine.thresholds import split_holdout
from cfa_cli.errors import BundleError, DeviceError, InputError, UsageError
from cfa_cli.records import Source
from tests.conftest import draw_part, write_part
from tests.results.runs import CALIBRATION


@pytest.fixture(scope="module")
def bundle(model):
    return load_bundle(model)


def test_a_held_out_image_gets_the_score_that_was_kept(bundle, good_dir):
    paths = sorted(good_dir.rglob("*.png"))
    _, held = split_holdout(len(paths), bundle.config.holdout, bundle.config.seed)
    absolute = fit(good_dir, replace(bundle.config, normalize_positions=False)).bundle
    assert (absolute.tensors["baseline"] == 1).all()
    scores = sorted(p.score for p in predict(absolute, [paths[index] for index in held]))
    # `fit` keeps features in half precision.
    assert scores == pytest.approx(absolute.calibration.holdout_scores, rel=1e-3)
    # Normalised by position, it was judged by the other held-out images alone; now it has a say as well.
    scores = sorted(p.score for p in predict(bundle, [paths[index] for index in held]))
    assert scores == pytest.approx(bundle.calibration.holdout_scores, rel=0.2)
    assert scores != pytest.approx(bundle.calibration.holdout_scores, rel=1e-3)


def test_scores_do_not_depend_on_what_else_is_scored(bundle, good_dir):
    alone = [next(predict(bundle, path)).score for path in sorted(good_dir.rglob("*.png"))[:5]]
    among = {p.source.path: p.score for p in predict(bundle, good_dir)}
    assert alone == [among[path] for path in sorted(good_dir.rglob("*.png"))[:5]]


def test_a_bundle_that_was_not_saved_scores_the_same(fitted, bundle, good_dir):
    path = good_dir / "000.png"
    assert next(predict(fitted.bundle, path)).score == next(predict(bundle, path)).score


def test_defects_score_higher_and_are_where_the_map_peaks(bundle, tmp_path):
    for number in range(4):
        write_part(tmp_path / f"good{number}.png", 100 + number)
        write_part(tmp_path / f"bad{number}.png", 100 + number, defect=True)
    found = {p.source.name: p for p in predict(bundle, tmp_path)}
    for number in range(4):
        good, bad = found[f"good{number}.png"], found[f"bad{number}.png"]
        assert bad.score > 1.5 * good.score
        assert (bad.label, bad.threshold) == ("anomalous", bundle.calibration.threshold)
        assert bad.normalized == pytest.approx(bad.score / (bad.score + bad.threshold))
        assert 0.5 < bad.normalized < 1
        row, column = np.unravel_index(bad.map.argmax(), bad.map.shape)
        assert 36 <= row < 50
        assert 20 <= column < 34
        assert bad.milliseconds > 0


def test_regions_come_with_the_maps_in_the_sources_px(bundle, tmp_path):
    # The map is smooth: its peak is in the square of rows 36 to 49 and columns 20 to 33, or near it.
    ((region, *others),) = [p.regions for p in predict(bundle, write_part(tmp_path / "bad.png", 100, defect=True))]
    assert all(other.peak <= region.peak for other in others)
    column, row = region.peak_at
    assert 14 <= column < 40
    assert 30 <= row < 56
    assert region.left <= column < region.left + region.width
    assert region.top <= row < region.top + region.height
    assert region.peak > bundle.calibration.pixel_threshold


def test_maps_and_images_are_at_the_sources_size(bundle, tmp_path):
    sizes = {"a.png": (72, 80), "b.png": (33, 300), "c.jpg": (200, 40), "d.bmp": (64, 64)}
    for number, (name, size) in enumerate(sizes.items()):
        write_part(tmp_path / name, number, size=size)
    for prediction in predict(bundle, tmp_path):
        expected = sizes[prediction.source.name]
        assert (prediction.map.shape, prediction.map.dtype) == (expected, np.float32)
        assert (prediction.image.shape, prediction.image.dtype) == ((*expected, 3), np.uint8)
    np.testing.assert_array_equal(next(predict(bundle, tmp_path / "a.png")).image, draw_part(0)[..., ::-1])


def test_20000_px_wide(bundle, tmp_path):
    path = write_part(tmp_path / "wide.png", 0, size=(40, 20000))
    (prediction,) = predict(bundle, path)
    assert prediction.map.shape == (40, 20000)
    assert prediction.score > 0


def test_the_same_picture_in_every_form_gets_the_same_score(bundle, tmp_path):
    """As 8 and 16 bit, grey, with alpha, as a palette, as CMYK, and as the first frame of an animation."""
    grey = draw_part(3)[..., 1]
    rgb = Image.fromarray(np.stack([grey] * 3, axis=-1))
    rgb.save(tmp_path / "rgb.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    cv2.imwrite(str(tmp_path / "grey16.png"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "rgb16.tiff"), np.stack([grey.astype(np.uint16) * 257] * 3, axis=-1))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(np.full(grey.shape, 255, np.uint8)))
    alpha.save(tmp_path / "rgba.png")
    for name in ("palette.png", "palette.bmp"):
        Image.fromarray(grey).convert("P").save(tmp_path / name)
    rgb.save(tmp_path / "animated.webp", save_all=True, append_images=[rgb.rotate(90)], lossless=True)
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    found = {p.source.name: p for p in predict(bundle, tmp_path)}
    assert {name: p.error for name, p in found.items() if p.error} == {}
    assert len(found) == 9
    for name, prediction in found.items():
        # JPEG changes the noise a little, and 16 bit the last bit of what the backbone rounds to bfloat16.
        tolerance = {"cmyk.jpg": 0.05, "grey16.png": 0.01, "rgb16.tiff": 0.01}.get(name, 0)
        assert prediction.score == pytest.approx(found["rgb.png"].score, rel=tolerance, abs=0), name


def test_unreadable_images_have_their_error_in_their_place(bundle, tmp_path):
    for number in (0, 2, 4):
        write_part(tmp_path / f"{number}.png", number)
    (tmp_path / "1.png").write_bytes(b"")
    write_part(tmp_path / "3.png", 3, size=(1, 1))
    found = list(predict(bundle, tmp_path))
    assert [p.source.name for p in found] == [f"{number}.png" for number in range(5)]
    assert [p.error is None for p in found] == [True, False, True, False, True]
    assert "is empty" in found[1].error
    assert "1 x 1 px" in found[3].error
    assert (found[1].score, found[1].label, found[1].normalized, found[1].map, found[1].image) == (None,) * 5
    for number in (0, 2, 4):  # as if the others were not there
        assert found[number].score == next(predict(bundle, tmp_path / f"{number}.png")).score


def test_the_threshold_can_be_overridden(bundle, good_dir):
    path = good_dir / "000.png"
    score = next(predict(bundle, path)).score
    assert next(predict(bundle, path, threshold=score * 0.99)).label == "anomalous"
    exactly = next(predict(bundle, path, threshold=score))
    assert (exactly.label, exactly.normalized) == ("good", 0.5)
    kept = bundle.calibration.holdout_scores
    assert next(predict(bundle, path, max_fpr=0.9)).threshold == kept[0]
    assert next(predict(bundle, path, max_fpr=0.01)).threshold == kept[-1]


def test_inputs_of_all_kinds(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.png", "b/x.png", "c.png"):
        write_part(tmp_path / name, 0)
    names = [p.source.name for p in predict(bundle, [tmp_path / "a", str(tmp_path / "*" / "x.png"), "-"],
                                            stdin=[f"{tmp_path / 'c.png'}\n"])]  # fmt: skip
    assert names == ["a/x.png", "b/x.png", "c.png"]


def test_a_stream_reads_no_further_ahead_than_it_needs(bundle, good_dir):
    """What waits is bounded, and images that were handed out are let go."""
    last = 0

    def many():
        nonlocal last
        for last in range(1000):
            yield Source(good_dir / "000.png", f"{last}.png")

    stream = score_sources(load_scorer(bundle), many(), CALIBRATION, keep_images=True)
    alive: list[weakref.ref[np.ndarray]] = []
    for number, prediction in enumerate(itertools.islice(stream, 100)):
        assert prediction.source.name == f"{number}.png"
        assert last - number <= 4 * BATCH_SIZE
        alive = [ref for ref in [*alive, weakref.ref(prediction.image)] if ref() is not None]
        assert len(alive) <= BATCH_SIZE + 1
    stream.close()
    del prediction
    gc.collect()
    assert [ref for ref in alive if ref() is not None] == []


def test_a_device_that_is_not_there(bundle, good_dir):
    with pytest.raises(DeviceError, match="'cuda:99' is not there") as caught:
        next(predict(bundle, good_dir, device="cuda:99"))
    assert "--device" in str(caught.value.hint)
    with pytest.raises(UsageError):
        next(predict(bundle, good_dir, device="abacus"))


def test_bad_inputs(bundle, tmp_path, model):
    for inputs, message in [(tmp_path / "none.png", "no file"), (tmp_path, "no files"), (model, "is a model")]:
        with pytest.raises(InputError, match=message):
            next(predict(bundle, inputs))


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda b: replace(b, grid=(7, 8), tensors=b.tensors | {"baseline": np.ones((7, 8), np.float32)}),
            r"grid is \(7, 8\), expected \(8, 8\)",
        ),
        (lambda b: replace(b, geometry=replace(b.geometry, size=(96, 64))), "grid"),
        (lambda b: replace(b, tensors=without(b.tensors, "backbone.conv1.weight")), "conv1.weight"),
        (lambda b: replace(b, tensors={**b.tensors, "backbone.bn1.bias": np.zeros(3, np.float32)}), "bn1.bias"),
        (lambda b: replace(b, backbone=replace(b.backbone, name="resnet34")), "resnet34"),
        (lambda b: replace(b, backbone=replace(b.backbone, name="hf-hub:someone/something")), "hf-hub"),
        (lambda b: replace(b, backbone=replace(b.backbone, layers=("layer1",))), "descriptor.weight"),
        (lambda b: replace(b, backbone=replace(b.backbone, layers=())), "No layer"),
        (lambda b: replace(b, backbone=replace(b.backbone, layers=("layer9",))), "layer9"),
    ],
)
def test_a_model_whose_parts_do_not_fit(bundle, good_dir, tmp_path, damage, message):
    path = tmp_path / "damaged.safetensors"
    save_bundle(damage(bundle), path)
    with pytest.raises(BundleError, match=message) as caught:
        next(predict(load_bundle(path), good_dir))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [("bank", 1e19), ("bank", 3e38), ("descriptor.weight", 3e38), ("backbone.conv1.weight", 3e38), ("baseline", 1e-45)],
)
def test_a_score_that_is_not_finite_is_an_error(bundle, good_dir, tmp_path, name, value):
    huge = np.full_like(bundle.tensors[name], value)
    path = tmp_path / "huge.safetensors"
    save_bundle(replace(bundle, tensors=bundle.tensors | {name: huge}), path)
    # In floating point: integers are cut to their range.
    for prediction in predict(load_bundle(path), sorted(good_dir.glob("*.png"))[:2], precision="float32"):
        assert (prediction.score, prediction.label, prediction.map) == (None, None, None)
        assert "no finite score" in prediction.error


@pytest.mark.parametrize("name", ["eva_giant_patch14_560", "resnetv2_152x4_bit", "vit_7b_patch16_dinov3"])
def test_a_backbone_that_the_file_does_not_hold_takes_no_memory(bundle, name):
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match=f"weights do not fit {name}|{name} has no layer"):
        load_scorer(replace(bundle, backbone=replace(bundle.backbone, name=name)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB; the models have 4 to 27 GB


@pytest.mark.parametrize("fitted_in", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("native", [True, False])
def test_predict_computes_in_what_fit_computed_in_where_it_is_native(bundle, monkeypatch, fitted_in, native):
    """On the CPU: bfloat16 as the processor has it, float16 never."""
    monkeypatch.setattr("cfa_cli.engine.scorer.native_bfloat16", lambda device: native)
    model = replace(bundle, backbone=replace(bundle.backbone, precision=fitted_in))

    def computed_in(scorer):
        return str(next(scorer.network.backbone.parameters()).dtype).removeprefix("torch.")

    scorer = load_scorer(model)
    same = fitted_in == "float32" or (fitted_in == "bfloat16" and native)
    assert computed_in(scorer) == (fitted_in if same else "float32")
    assert [fitted_in in warning and "float32" in warning for warning in scorer.warnings] == [True] * (not same)
    asked = load_scorer(model, precision="bfloat16")
    assert (computed_in(asked), asked.warnings) == ("bfloat16", ())


def test_a_cropped_model_scores_the_crop_alone(good_dir, tmp_path):
    config = FitConfig(weights="embedded", size=(64, 64), crop=(32, 32), epochs=0)
    cropped = fit(sorted(good_dir.glob("*.png"))[:6], config).bundle
    part = draw_part(0, size=(128, 128))
    cv2.imwrite(str(tmp_path / "plain.png"), part)
    outside = part.copy()
    outside[:16, :16] = (20, 240, 250)  # a defect that the crop leaves out
    cv2.imwrite(str(tmp_path / "outside.png"), outside)
    first, second = predict(cropped, [tmp_path / "plain.png", tmp_path / "outside.png"])
    assert first.score == second.score
    assert first.map.shape == (128, 128)
    assert first.map[0, 0] < first.map[64, 64]


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_backbone_scores_the_same(good_dir):
    paths = sorted(good_dir.glob("*.png"))[:6]
    small = fit(paths, FitConfig(weights="embedded", size=(64, 64), layers=("4",), epochs=0)).bundle
    scorer = load_scorer(small, precision="float32")
    inputs = torch.stack([scorer.prepare(cv2.imread(str(path))) for path in paths[:3]])
    scores, maps = scorer(inputs)
    scorer.compile()
    compiled_scores, compiled_maps = scorer(inputs)
    np.testing.assert_allclose(compiled_scores, scores, rtol=1e-3)
    np.testing.assert_allclose(compiled_maps, maps, atol=1e-3 * scores.max())


def test_compiling_without_a_compiler(bundle, monkeypatch):
    scorer = load_scorer(bundle, precision="float32")

    def refuse(inputs):
        raise RuntimeError("No working C++ compiler found.\nSet CXX.")

    monkeypatch.setattr(scorer, "_score", refuse)
    with pytest.raises(DeviceError, match="No working C\\+\\+ compiler found") as caught:
        scorer.compile()
    assert "--compile" in str(caught.value.hint)
