"""Models that exist, measured and compared without training."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from cfa_cli import fit, open_model, predict, save_bundle
from cfa_cli.config import FitConfig
from cfa_cli.data.datasets import open_dataset
from cfa_cli.engine.bootstrap import average, drawn_differences, with_intervals
from cfa_cli.engine.compare import compare
from cfa_cli.engine.measure import measure
from cfa_cli.errors import InputError, UsageError
from cfa_cli.intervals import clopper_pearson
from cfa_cli.results.comparison import rate_text, threshold_table, trade_off
from tests.engine.trees import make_tree

CONFIG = FitConfig(weights="embedded", size=(64, 64), epochs=1, precision="float32")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two models of one category, and the results of comparing them."""
    folder = tmp_path_factory.mktemp("compare")
    tree = make_tree(folder / "tree", ["bolt"], good=6, bad=6)
    for name, size in (("a", 64), ("b", 32)):
        bundle = fit(tree / "bolt/train/good", replace(CONFIG, size=(size, size), max_fpr=0.3)).bundle
        save_bundle(bundle, folder / f"{name}.safetensors")
    models = [folder / "a.safetensors", folder / "b.safetensors"]
    dataset = open_dataset(str(tree / "bolt"))
    results = compare(dataset, models, out=folder / "out", command="cfa benchmark x")
    return folder, tree, dataset, models, results


def test_the_figures_are_those_of_the_models_predictions(compared):
    folder, tree, _, models, results = compared
    assert [each.method for each in results.evaluations] == ["a.safetensors", "b.safetensors"]
    for model, evaluation in zip(models, results.evaluations, strict=True):
        predictions = list(predict(model, tree / "bolt/test"))
        scores = np.array([prediction.score for prediction in predictions])
        labels = np.array([prediction.source.path.parent.name != "good" for prediction in predictions])
        flagged = np.array([prediction.label == "anomalous" for prediction in predictions])
        assert evaluation.image_auroc == pytest.approx(roc_auc_score(labels, scores))
        assert (evaluation.fpr, evaluation.recall) == pytest.approx((flagged[~labels].mean(), flagged[labels].mean()))
        assert evaluation.threshold == open_model(model).bundle.calibration.threshold
        assert sorted(image.score for image in evaluation.images) == pytest.approx(sorted(scores), rel=1e-5)
        assert evaluation.fit_seconds is None
        (kind,) = evaluation.kinds
        assert (kind.kind, kind.images, kind.caught) == ("spot", 6, flagged[labels].sum())
        assert (kind.image_auroc, kind.aupro) == (evaluation.image_auroc, evaluation.aupro)  # there is no other kind
    document = json.loads((folder / "out/results.json").read_text())
    assert document["config"] is None
    assert [run["model"] for run in document["runs"]] == ["a.safetensors", "b.safetensors"]
    assert {each["metric"] for each in document["differences"]} == {"image_auroc", "aupro", "fpr", "recall"}
    text = (folder / "out/results.md").read_text()
    assert "bolt: models side by side" in text
    assert "b.safetensors less a.safetensors" in text


def test_a_difference_is_that_of_the_figures_and_its_interval_that_of_drawn_images(compared):
    _, _, dataset, models, results = compared
    first, second = (measure(dataset.categories[0], open_model(model)) for model in models)
    values = {each.metric: each for each in results.differences}
    for metric in ("image_auroc", "aupro", "fpr", "recall"):
        ours, theirs = (getattr(each, metric) for each in results.evaluations)
        assert values[metric].value == pytest.approx(theirs - ours)
        assert values[metric].low <= values[metric].value <= values[metric].high

    # A slow version, with draws of its own: the intervals agree as far as chance lets them.
    rng = np.random.default_rng(7)
    labels = np.array([image.anomalous for image in first.images])
    scores = [np.array([image.score for image in each.images]) for each in (first, second)]
    good, bad = np.flatnonzero(~labels), np.flatnonzero(labels)
    slow = []
    for _ in range(1000):
        drawn = np.concatenate([rng.choice(good, len(good)), rng.choice(bad, len(bad))])
        slow.append(np.subtract(*(roc_auc_score(labels[drawn], each[drawn]) for each in scores[::-1])))
    low, high = np.quantile(slow, [0.025, 0.975])
    assert (values["image_auroc"].low, values["image_auroc"].high) == pytest.approx((low, high), abs=0.04)
    again = with_intervals("bolt", "a.safetensors", "b.safetensors", drawn_differences(first, second))
    assert tuple(again) == results.differences  # seeded
    nothing = drawn_differences(first, first)
    assert all(value == 0 and not values.any() for value, values in nothing.values())
    mean, values_of_mean = average([drawn_differences(first, second), nothing])["image_auroc"]
    assert mean == pytest.approx(values["image_auroc"].value / 2)
    assert len(values_of_mean) == 2000


def test_what_each_threshold_does(compared):
    evaluation = compared[4].evaluations[0]
    rows = trade_off(evaluation)
    for row in rows:
        over = [image for image in evaluation.images if image.score > row.threshold]
        assert row.false_alarms == sum(image.kind == "good" for image in over)
        assert row.caught == sum(image.kind != "good" for image in over) == sum(row.kinds.values())
    assert [row.own for row in rows].count(True) == 1
    assert [row.threshold for row in rows] == sorted(row.threshold for row in rows)
    assert rows[-1].false_alarms == 0
    assert any("(own)" in cells[0] for cells in threshold_table(evaluation).rows)


def test_intervals_are_exact():
    for count, total in ((0, 60), (3, 60), (60, 60), (1, 2)):
        expected = binomtest(count, total).proportion_ci(0.95, "exact")
        assert clopper_pearson(count, total, 0.95) == pytest.approx((expected.low, expected.high))
    assert rate_text(3, 60) == "3/60 = 5.0 % (1.0 to 13.9)"
    assert rate_text(0, 0) == "-"


class Painted:
    """A scorer whose map is the image's red channel, as the crop shows it."""

    warnings = ()
    training = None

    def __init__(self, geometry):
        self.geometry = geometry

    def prepare(self, image):
        import torch

        top, left = 8, 8
        return torch.from_numpy(image[top : top + 48, left : left + 48, 0].astype(np.float32))[None]

    def __call__(self, inputs):
        maps = inputs.numpy()[:, 0]
        return maps.max(axis=(1, 2)), maps


def test_pixels_outside_the_crop_are_not_judged(compared, tmp_path):
    # Images of 64 x 64 px, of which 48 x 48 are seen. Outside there is a defect that nobody could find, and in a good
    # image bright pixels that nobody could see; inside, one defect is found before all else and one after all else.
    for part in ("train/good", "test/good", "test/spot", "ground_truth/spot"):
        (tmp_path / "cat" / part).mkdir(parents=True)
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    for name in "01":
        cv2.imwrite(str(tmp_path / f"cat/train/good/{name}.png"), image)
    good = image.copy()
    good[:8] = 255
    good[30:40, 30:40] = 50
    cv2.imwrite(str(tmp_path / "cat/test/good/0.png"), good)
    mask[2:6, 2:6] = mask[12:16, 12:16] = mask[40:44, 40:44] = 255
    image[12:16, 12:16] = 200
    cv2.imwrite(str(tmp_path / "cat/test/spot/0.png"), image)
    cv2.imwrite(str(tmp_path / "cat/ground_truth/spot/0_mask.png"), mask)
    model = open_model(compared[3][0])
    geometry = replace(model.bundle.geometry, size=(64, 64), crop=(48, 48))
    painted = replace(model, bundle=replace(model.bundle, geometry=geometry), scorer=Painted(geometry))
    (category,) = open_dataset(str(tmp_path / "cat")).categories
    found = measure(category, painted)
    # 16 defective pixels at 200 and 16 at 0, 2 * 48² - 32 good ones, of which 100 are at 50 and the others at 0.
    good_pixels = 2 * 48**2 - 32
    rate = 100 / good_pixels
    assert found.pixels.auroc == pytest.approx((1 + 0.5 * (1 - rate)) / 2)
    # Overlap: 0.5 up to FPR `rate`, then straight to (1, 1).
    at_limit = 0.5 + 0.5 * (0.3 - rate) / (1 - rate)
    assert found.pixels.aupro == pytest.approx((0.5 * rate + (0.3 - rate) * (0.5 + at_limit) / 2) / 0.3)


def test_folders_have_a_model_for_each_category_and_one_that_fails_stops_no_other(compared, tmp_path):
    models = compared[3]
    tree = make_tree(tmp_path / "tree", ["bolt", "nut"])
    (tree / "nut/test/good/000.png").write_bytes(b"no image")
    for name, model in zip("xy", models, strict=True):
        (tmp_path / name).mkdir()
        for category in ("bolt", "nut"):
            (tmp_path / name / f"{category}.safetensors").write_bytes(model.read_bytes())
    results = compare(open_dataset(str(tree)), [tmp_path / "x", tmp_path / "y"], out=tmp_path / "out")
    assert [each.label for each in results.evaluations] == ["bolt (x)", "bolt (y)"]
    assert [failure.label for failure in results.failures] == ["nut (x)", "nut (y)"]
    assert {each.category for each in results.differences} == {"bolt"}
    with pytest.raises(UsageError, match="one model, and the data set has several"):
        compare(open_dataset(str(tree)), models, out=tmp_path / "other")
    (tmp_path / "y/nut.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model nut\.safetensors"):
        compare(open_dataset(str(tree)), [tmp_path / "y"], out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_exported_model_is_compared_with_its_bundle(compared, tmp_path):
    pytest.importorskip("onnxruntime")
    from cfa_cli.engine.export import export

    _, tree, dataset, models, _ = compared
    export(models[0], tmp_path / "a.onnx", images=tree / "bolt/test")
    results = compare(dataset, [models[0], tmp_path / "a.onnx"], out=tmp_path / "out")
    for each in results.differences:
        assert each.value == pytest.approx(0, abs=1e-3)
        assert not each.beyond_chance


def test_earlier_results_are_not_overwritten(compared, tmp_path):
    folder, _, dataset, models, _ = compared
    with pytest.raises(InputError, match="holds results"):
        compare(dataset, models[:1], out=folder / "out")
    before = (folder / "out/results.json").read_bytes()
    with pytest.raises(UsageError, match="given twice"):
        compare(dataset, [models[0], models[0]], out=folder / "out", force=True)
    assert (folder / "out/results.json").read_bytes() == before
