"""Exported models score as the bundle does, in their own runtimes."""

import functools
import hashlib
import json
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import from_numpy

from cfa_cli import FitConfig, fit, predict
from cfa_cli.bundle import load_bundle, save_bundle
from cfa_cli.engine.export import export
from cfa_cli.engine.export_options import ExportOptions
from cfa_cli.engine.runtimes import load_exported, load_model
from cfa_cli.engine.scorer import score_sources
from cfa_cli.errors import BundleError, DeviceError, ExportError, InputError, UsageError
from cfa_cli.model import deployed, quantised
from cfa_cli.model.quantised import multiplies_bytes
from cfa_cli.records import Geometry, Source
from tests.engine.exports import make_bundle
from tests.results.runs import CALIBRATION

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
MODULES = {"onnx": ["onnx", "onnxscript", "onnxruntime"], "openvino": ["onnx", "onnxscript", "openvino"], "torch": []}
SIZES = [(50, 81), (64, 96), (130, 75), (130, 75)] + [(33, 140)] * 6  # of the test images: ten make a batch of 8 and 2


def require(*formats):
    for name in formats:
        for module in MODULES[name]:
            pytest.importorskip(module, reason=f"the extra {name} is not installed")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Not square, cropped, with compressed bank and descriptor."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    return make_bundle(path, size=(64, 112), crop=(64, 96), gamma_c=2, gamma_d=3, layers=("4", "8"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    for number, (height, width) in enumerate(SIZES):
        coarse = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST))
    return folder


@pytest.fixture
def few(images, tmp_path_factory):
    """Two of them."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("0.png", "1.png"):
        shutil.copy(images / name, folder)
    return folder


@pytest.fixture(scope="module")
def exported(bundle, images, tmp_path_factory):
    """What each ExportOptions gives: the result, made once."""

    @functools.cache
    def make(options):
        require(options.format)
        out = tmp_path_factory.mktemp("exported") / f"m{SUFFIXES[options.format]}"
        return export(bundle, out, options, images=images)

    return make


STATIC, DYNAMIC = ExportOptions(opset=20), ExportOptions(resize=True, dynamic_batch=True)


def compare(bundle, exported, images, tolerance=1e-4):
    """Score with both, image by image and in batches, and compare scores and maps relative to the image's score."""
    expected = {}
    _, scorer = load_model(bundle, "cpu", "float32")
    sources = [Source(path, path.name) for path in sorted(images.iterdir())]
    for prediction in score_sources(scorer, sources, CALIBRATION):
        expected[prediction.source.name] = prediction
    # torch runs code that a .pt2 file holds: the tool reads its own alone, while it verifies.
    description, scorer = load_exported(exported, "torch") if exported.suffix == ".pt2" else load_model(exported)
    assert description.calibration == load_bundle(bundle).calibration
    for found in score_sources(scorer, sources, CALIBRATION):
        wanted = expected[found.source.name]
        assert found.score == pytest.approx(wanted.score, rel=tolerance)
        assert found.score_map.shape == wanted.score_map.shape == scorer.geometry.input_size
        np.testing.assert_allclose(found.score_map, wanted.score_map, atol=tolerance * wanted.score, rtol=0)


@pytest.mark.parametrize("options", [
    STATIC,
    DYNAMIC,
    ExportOptions("openvino", resize=True, dynamic_batch=True),
    ExportOptions("torch", dynamic_batch=True),
], ids=lambda o: f"{o.format}{'-resize' * o.resize}{'-batch' * o.dynamic_batch}")  # fmt: skip
def test_scores_are_the_bundles(bundle, images, exported, options):
    result = exported(options)
    found = result.verification
    assert found.max_relative < 1e-4
    assert found.labels_agree == found.images == len(SIZES)
    assert found.milliseconds > 0
    out = result.files[-1]
    assert sorted(result.files) == sorted(out.parent.iterdir())
    compare(bundle, out, images)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Larger than 512 px, not square, softmin over 3 neighbours, half of it ignored; the bank has 640 centroids."""
    folder = tmp_path_factory.mktemp("wide")
    mask = np.zeros((46, 60), np.uint8)
    mask[:20, 10:] = 255
    cv2.imwrite(str(folder / "mask.png"), mask)
    options = {"size": (64, 640), "gamma_c": 4, "score_neighbours": 3, "bank": "mean"}
    return make_bundle(folder / "m.safetensors", ignore=folder / "mask.png", **options)


@pytest.mark.parametrize("format", SUFFIXES)
def test_one_loop_searches_large_banks(wide, images, tmp_path, format):
    """Also a bank and queries that fill no last group and no last turn of the loop; batches of any number."""
    require(format)
    result = export(wide, tmp_path / f"m{SUFFIXES[format]}", ExportOptions(format, dynamic_batch=True), images=images)
    assert result.verification.max_relative < 1e-4
    compare(wide, result.files[-1], images)


def test_graphs_have_names_and_few_nodes(wide, few, tmp_path):
    require("onnx")
    import onnx

    def nodes(graph):
        inner = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        return list(graph.node) + [node for part in inner for node in nodes(part)]

    path = export(wide, tmp_path / "m.onnx", DYNAMIC, images=few).files[0]
    graph = onnx.load(path).graph
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    shapes |= {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.output}
    assert shapes["images"] == ["batch", "height", "width", 3]
    assert shapes["map"] == ["batch", 64, 640]
    assert shapes["score"] == shapes["normalized_score"] == ["batch"]
    found = [node.op_type for node in nodes(graph)]
    assert found.count("Loop") == 1
    assert len(found) < 250


@pytest.mark.parametrize(("backbone", "size", "gamma_d"), [
    ("wide_resnet50_2", (32, 64), 4), ("vgg19_bn", (64, 32), 2), ("efficientnet_b5", (32, 32), 1)
])  # fmt: skip
def test_backbones(images, tmp_path, backbone, size, gamma_d):
    require("onnx")
    layers = ("4", "8") if backbone == "wide_resnet50_2" else None
    model = make_bundle(tmp_path / "m.safetensors", backbone=backbone, size=size, gamma_d=gamma_d, layers=layers)
    found = export(model, tmp_path / "m.onnx", ExportOptions(dynamic_batch=True), images=images).verification
    assert found.images == len(SIZES)
    assert found.max_relative < 1e-4


def test_a_model_of_few_images_knows_their_patches_and_is_exported_all_the_same(good_dir, tmp_path):
    """Some centroids are patches of these images: distances of nothing, of which rounding would make something."""
    require("onnx")
    images = sorted(good_dir.glob("*.png"))[:4]
    config = FitConfig(weights="embedded", size=(128, 128), precision="float32")
    save_bundle(fit(images, config).bundle, tmp_path / "m.safetensors")
    found = export(tmp_path / "m.safetensors", tmp_path / "m.onnx", images=good_dir).verification
    assert found.max_relative < 2e-5


def test_size(few, tmp_path):
    """At 224 px nothing is there twice: the bank has 5.6 MB."""
    require("onnx")
    model = make_bundle(tmp_path / "m.safetensors", size=(224, 224))
    size = export(model, tmp_path / "m.onnx", images=few).bytes
    assert size < model.stat().st_size + 500_000
    assert size <= 25e6


def test_half_is_half(bundle, exported, images):
    result = exported(ExportOptions(half=True))
    assert 1e-6 < result.verification.max_relative < 1e-2
    assert result.bytes < 0.6 * exported(STATIC).bytes
    compare(bundle, result.files[0], images, tolerance=1e-2)


@pytest.fixture(scope="module")
def int8_bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("int8") / "m.safetensors", precision="int8", layers=("4", "8"))


@pytest.mark.skipif(not multiplies_bytes(torch.device("cpu")), reason="no VNNI")
@pytest.mark.parametrize("options", [
    ExportOptions(resize=True, dynamic_batch=True), ExportOptions("openvino", dynamic_batch=True)
], ids=lambda o: o.format)  # fmt: skip
def test_int8_models_stay_int8(int8_bundle, images, tmp_path, monkeypatch, options):
    """Their scores are those of the same integers in float32, by the tool on a processor without VNNI."""
    require(options.format)
    result = export(int8_bundle, tmp_path / f"m{SUFFIXES[options.format]}", options, images=images)
    assert result.int8
    assert result.note is None
    assert result.verification.max_relative < 2e-2
    assert result.verification.labels_agree == len(SIZES)
    assert result.bytes < 0.7 * int8_bundle.stat().st_size
    _, exported = load_model(result.files[-1])
    _, in_float = load_model(int8_bundle, "cpu", "float32")
    monkeypatch.setattr(quantised, "multiplies_bytes", lambda device: False)
    _, simulated = load_model(int8_bundle, "cpu", "int8")
    sources = [Source(path, path.name) for path in sorted(images.iterdir())]
    found, expected, other = (
        [one.score_map for one in score_sources(scorer, sources, CALIBRATION)]
        for scorer in (exported, simulated, in_float)
    )
    for ours, tools, floats in zip(found, expected, other, strict=True):
        assert np.abs(ours - tools).max() < 2e-2 * tools.max()
        assert np.abs(ours - tools).mean() < 0.1 * np.abs(floats - tools).mean()


@pytest.mark.parametrize("reason", ["format", "option", "processor"])
def test_int8_models_in_float32_say_so(int8_bundle, few, tmp_path, monkeypatch, reason):
    options = ExportOptions("torch")
    if reason != "format":
        require("onnx")
        options = ExportOptions(precision="float32" if reason == "option" else "auto")
    if reason == "processor":
        monkeypatch.setattr("cfa_cli.engine.export.multiplies_bytes", lambda device: False)
    result = export(int8_bundle, tmp_path / f"m{SUFFIXES[options.format]}", options, images=few)
    assert not result.int8
    assert "computes in float32, the model in int8" in result.note
    assert result.verification.max_relative < 1e-4


@pytest.mark.skipif(not multiplies_bytes(torch.device("cpu")), reason="no VNNI")
def test_int8_graphs_are_refused_where_sums_are_cut(int8_bundle, few, tmp_path, monkeypatch):
    require("onnx")
    path = export(int8_bundle, tmp_path / "m.onnx", images=few).files[0]
    monkeypatch.setattr("cfa_cli.engine.runtimes.multiplies_bytes", lambda device: False)
    monkeypatch.setattr("cfa_cli.engine.runtimes.platform.machine", lambda: "aarch64")
    load_model(path)  # Arm sums them up in 32 bits
    monkeypatch.setattr("cfa_cli.engine.runtimes.platform.machine", lambda: "AMD64")
    with pytest.raises(DeviceError, match="without VNNI"):
        load_model(path)


def test_other_scores_leave_nothing(bundle, tmp_path, monkeypatch):
    right = deployed.position_scores
    monkeypatch.setattr(deployed, "position_scores", lambda squared: right(squared) * 1.001)
    with pytest.raises(ExportError, match=r"does not score like this one: the relative error is 0\.001"):
        export(bundle, tmp_path / "m.pt2", ExportOptions("torch"))
    assert list(tmp_path.iterdir()) == []


def test_metadata_and_thresholds(bundle, exported):
    path = exported(STATIC).files[0]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    calibration = load_bundle(bundle).calibration
    image = np.random.default_rng(0).random((1, 3, 64, 96), np.float32)
    names = ["score", "normalized_score", "map", "threshold", "pixel_threshold"]
    score, normalized, score_map, threshold, pixel_threshold = session.run(names, {"images": image})
    assert threshold == np.float32(calibration.threshold)
    assert pixel_threshold == np.float32(calibration.pixel_threshold)
    assert normalized == pytest.approx(score / (score + calibration.threshold))
    assert score == pytest.approx(score_map.max())
    metadata = session.get_modelmeta().custom_metadata_map
    told = json.loads(metadata["cfa_export"])
    assert told["bundle_sha256"] == hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert told["verification"]["max_relative"] < 1e-4
    assert json.loads(metadata["cfa"])["calibration"]["threshold"] == calibration.threshold


@pytest.mark.parametrize("height", [31, 64, 65, 200])
@pytest.mark.parametrize("width", [20, 96, 1000])
def test_resize_is_antialiased_bilinear(height, width):
    image = from_numpy(np.random.default_rng(0).random((1, 3, height, width), np.float32))
    expected = F.interpolate(image, size=(64, 96), mode="bilinear", align_corners=False, antialias=True)
    geometry = Geometry((64, 96), (40, 50), (0, 0, 0), (1, 1, 1))
    found = deployed.resize_and_crop(image, geometry)
    np.testing.assert_allclose(found, expected[..., 12:52, 23:73], atol=1e-5)


def test_weights_of_another_export_are_not_taken(bundle, exported, few, tmp_path):
    """An OpenVINO graph (.xml) beside another model's weights (.bin) of the same shapes, or none."""
    first = exported(ExportOptions("openvino", resize=True, dynamic_batch=True)).files
    assert [file.suffix for file in first] == [".bin", ".xml"]
    mixed = shutil.copy(first[1], tmp_path / "m.xml")
    with pytest.raises(BundleError, match=r"has no m\.bin beside it"):
        load_model(mixed)
    weights = np.frombuffer(first[0].read_bytes(), np.uint8).copy()
    weights[len(weights) // 2] ^= 1
    weights.tofile(tmp_path / "m.bin")
    with pytest.raises(BundleError, match=r"m\.bin does not belong to .*m\.xml"):
        load_model(mixed)
    shutil.copy(first[0], tmp_path / "m.bin")
    load_model(mixed)


def test_int8_measures_its_error(few, bundle, tmp_path):
    require("openvino")
    pytest.importorskip("nncf", reason="nncf is not installed")
    result = export(bundle, tmp_path / "m.xml", ExportOptions("openvino"), quantize=few)
    assert result.int8
    assert 1e-4 < result.verification.max_relative < 0.3  # not exact, but the same model
    assert result.bytes < 0.5 * bundle.stat().st_size


def test_images_that_do_not_fit_have_their_error(bundle, images, exported, tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((40, 40, 3), 40000, np.uint16))
    _, scorer = load_model(exported(DYNAMIC).files[0])
    names = [tmp_path / "deep.png", images / "0.png"]
    deep, usual = score_sources(scorer, [Source(path, path.name) for path in names], CALIBRATION)
    assert "16 bit" in deep.error
    assert usual.score == pytest.approx(next(predict(load_bundle(bundle), names[1], precision="float32")).score, 1e-4)


@pytest.mark.parametrize("module", ["onnx", "onnxruntime"])
def test_a_missing_extra_is_told(bundle, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExportError, match=f"{module} is not installed") as error:
        export(bundle, tmp_path / "m.onnx")
    assert "pipx inject cfa-cli onnx onnxscript onnxruntime" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_exports(tmp_path, monkeypatch):
    require("onnx")
    import onnx

    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(BundleError, match=r"m\.onnx cannot be loaded"):
        load_model(path)
    one = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [one], [other])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    with pytest.raises(BundleError, match="was not written by `cfa export`"):
        load_model(path)
    with pytest.raises(DeviceError, match="no device 'mps'"):
        load_model(path, "mps")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BundleError, match="onnxruntime is not installed"):
        load_model(path)


@pytest.mark.parametrize(("name", "options", "error"), [
    ("m.onnx", ExportOptions("openvino"), UsageError),
    ("m.pt2", ExportOptions("torch", opset=20), UsageError),
    ("m.onnx", ExportOptions(opset=11), UsageError),
    ("there.onnx", ExportOptions(), InputError),
    ("weights.xml", ExportOptions("openvino"), InputError),  # its .bin is there
])  # fmt: skip
def test_what_cannot_be_is_told_first(bundle, tmp_path, name, options, error):
    (tmp_path / "there.onnx").write_text("mine")
    (tmp_path / "weights.bin").write_text("mine")
    with pytest.raises(error):
        export(bundle, tmp_path / name, options)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}
