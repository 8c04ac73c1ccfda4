"""What is ignored makes no difference, and what is beside it is seen as before."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_curve, roc_auc_score

from cfa_cli import FitConfig, calibrate, fit, load_bundle, open_model, predict, save_bundle
from cfa_cli.data.datasets import open_dataset
from cfa_cli.engine.benchmark import benchmark
from cfa_cli.engine.export import ExportOptions, export
from cfa_cli.engine.ignore import open_ignore
from cfa_cli.engine.metrics import PixelMetrics
from cfa_cli.engine.runtimes import keep_from_text, keep_to_text
from cfa_cli.errors import ImageError, InputError, UsageError
from cfa_cli.geometry import keep_at_input, to_input
from cfa_cli.model.scoremap import ScoreMap, position_baseline
from cfa_cli.records import EXPORT_SUFFIXES, Geometry
from tests.conftest import assert_refused, draw_part, write_part
from tests.engine.trees import make_tree

SMALL = FitConfig(weights="embedded", size=(64, 64), epochs=1, max_fpr=0.25)
PART = np.s_[30:56, 14:40]  # what is ignored of the parts of 72 x 80 px; their defect lies in it


def write_mask(path: Path, *parts, size: tuple[int, int] = (72, 80)) -> Path:  # type: ignore[no-untyped-def]
    mask = np.zeros(size, np.uint8)
    for part in parts:
        mask[part] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, mask)[1].tobytes())
    return path


def part(number: int, defect: bool = False) -> np.ndarray:
    return draw_part(number, defect)[..., ::-1].copy()


def scratched(number: int) -> np.ndarray:
    """A part with a defect beside what is ignored."""
    image = part(number)
    image[5:17, 55:70] = (250, 240, 20)
    return image


def score(model, image, **options):  # type: ignore[no-untyped-def]
    return next(iter(predict(model, [image], **options)))


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mask(tmp_path_factory.mktemp("mask") / "mask.png", PART)


@pytest.fixture(scope="module")
def bundle(good_dir: Path, mask: Path):  # type: ignore[no-untyped-def]
    return fit(good_dir, SMALL, ignore=mask).bundle


def test_what_is_ignored_changes_nothing_and_what_is_beside_it_is_found(bundle) -> None:  # type: ignore[no-untyped-def]
    for number in (100, 101):
        clean, defect = score(bundle, part(number)), score(bundle, part(number, defect=True))
        assert (defect.score, defect.label) == (clean.score, clean.label)
        np.testing.assert_array_equal(defect.map, clean.map)
        noise = part(number)
        noise[PART] = np.random.default_rng(0).integers(0, 256, noise[PART].shape, np.uint8)
        np.testing.assert_array_equal(score(bundle, noise).map, clean.map)
        found = score(bundle, scratched(number))
        assert found.label == "anomalous"
        assert found.score > 1.5 * clean.score
    assert not clean.map[PART].any()
    assert (clean.map[:25] > 0).all()


def test_training_does_not_see_it_either(good_dir: Path, mask: Path, bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Whatever the training images show there, descriptor, bank, baseline and thresholds are the same."""
    for path in good_dir.rglob("*.png"):
        image = cv2.imread(str(path))
        image[PART] = np.random.default_rng(len(path.name)).integers(0, 256, image[PART].shape, np.uint8)
        target = tmp_path / path.relative_to(good_dir)
        target.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(target), image)
    other = fit(tmp_path, SMALL, ignore=mask).bundle
    assert other.calibration == bundle.calibration
    for name, tensor in bundle.tensors.items():
        np.testing.assert_array_equal(other.tensors[name], tensor)
    assert len(bundle.tensors["bank"]) < 2 * bundle.grid[0] * bundle.grid[1]


def test_the_bundle_keeps_it(bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    save_bundle(bundle, tmp_path / "model.safetensors")
    loaded = load_bundle(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.tensors["keep"], bundle.tensors["keep"])
    np.testing.assert_array_equal(score(loaded, part(7)).map, score(bundle, part(7)).map)


def test_a_mask_of_nothing_gives_the_same_bytes(good_dir: Path, tmp_path: Path) -> None:
    blank = write_mask(tmp_path / "blank.png")
    for name, ignore in {"without": None, "blank": blank}.items():
        save_bundle(fit(good_dir, SMALL, ignore=ignore).bundle, tmp_path / f"{name}.safetensors")
    first, second = (hashlib.sha256((tmp_path / f"{n}.safetensors").read_bytes()) for n in ("without", "blank"))
    assert first.digest() == second.digest()


def test_a_mask_in_place_of_the_models_own(bundle, fitted, mask: Path) -> None:  # type: ignore[no-untyped-def]
    inside = part(100, defect=True)
    same = score(bundle, inside, ignore=mask)
    np.testing.assert_allclose(same.map, score(bundle, inside).map, rtol=1e-6)
    seen = score(bundle, inside, ignore="none")  # the model was not trained there, but it sees it
    assert seen.map[PART].max() > 1.5 * same.score
    plain = score(fitted.bundle, inside)
    hidden = score(fitted.bundle, inside, ignore=mask)  # neighbours still see it, as in training
    assert hidden.score < plain.score
    assert not hidden.map[PART].any()
    far = np.s_[:, 72:]
    np.testing.assert_allclose(hidden.map[far], plain.map[far], rtol=1e-6)


@pytest.mark.parametrize("bank", ["kmeans", "mean", "ema"])
def test_a_folder_ignores_something_else_of_each_image(good_dir: Path, tmp_path: Path, bank: str) -> None:
    """Defects that lie where each image's own mask is make a model that finds the same defects elsewhere."""
    good, masks = tmp_path / "good", tmp_path / "masks"
    rng = np.random.default_rng(0)
    for number, path in enumerate(sorted(good_dir.rglob("*.png"))):
        image = cv2.imread(str(path))
        if number % 2:
            row, column = rng.integers(8, 46), rng.integers(8, 50)
            image[row : row + 14, column : column + 14] = (20, 240, 250)
            write_mask(masks / f"{path.stem}.png", np.s_[row - 6 : row + 20, column - 6 : column + 20])
        good.mkdir(exist_ok=True)
        cv2.imwrite(str(good / path.name), image)
    config = replace(SMALL, bank=bank, layers=("4",), size=(72, 80))  # which sees some 25 px around
    blind, told = fit(good, config), fit(good, config, ignore=masks)
    assert "keep" not in told.bundle.tensors
    assert "12 of 24 images have no mask" in str(told.warnings)
    assert "is not kept in the model" in str(told.warnings)
    defect = part(100, defect=True)
    write_mask(masks / "frame-000001.png", np.s_[25:61, 10:46])
    assert told.bundle.calibration.threshold < blind.bundle.calibration.threshold
    assert score(told.bundle, defect).label == "anomalous"
    run = predict(told.bundle, [defect, part(101)], ignore=masks)
    first, second = run
    assert not first.map[36:50, 20:34].any()
    assert first.score < score(told.bundle, defect).score
    assert second.score == pytest.approx(score(told.bundle, part(101)).score, rel=1e-6)
    assert f"Images without a mask in {masks}: nothing of them is ignored." in run.warnings


@pytest.mark.parametrize(
    ("parts", "size", "message"),
    [
        ([np.s_[:, :]], (72, 80), "ignores everything"),
        ([np.s_[:, 2:]], (72, 80), "ignores everything"),
        ([np.s_[:, 8:], np.s_[36:, :]], (72, 80), r"leaves \d+ of the model's 64 positions; at least 16 are needed"),
        ([PART], (72, 84), "is 84 x 72 px: its height is 0.857 of its width, that of the images 0.9"),
        ([PART], (80, 72), "is 72 x 80 px"),
    ],
    ids=str,
)
def test_a_mask_that_does_not_fit_or_leaves_nothing_is_said_before_training(
    good_dir: Path, fitted, tmp_path: Path, parts, size, message: str
) -> None:  # type: ignore[no-untyped-def]
    path = write_mask(tmp_path / "mask.png", *parts, size=size)
    steps = []  # type: ignore[var-annotated]
    with pytest.raises(InputError, match=message) as caught:
        fit(good_dir, SMALL, ignore=path, progress=steps.append)
    assert not steps
    assert caught.value.hint
    with pytest.raises(InputError, match=message):
        predict(fitted.bundle, [part(0)], ignore=path)


def test_one_bad_mask_of_a_folder_is_its_images_row(good_dir: Path, fitted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    masks = tmp_path / "masks"
    write_mask(masks / "000.png", PART)
    write_mask(masks / "001.png", PART, size=(72, 90))
    (masks / "002.png").write_bytes(b"no mask")
    paths = sorted(good_dir.rglob("*.png"))
    found = fit(paths, SMALL, ignore=masks)
    assert [Path(path).name for path, _ in found.skipped] == ["001.png", "002.png"]
    assert "is 90 x 72 px" in found.skipped[0][1]
    rows = list(predict(fitted.bundle, [str(path) for path in paths[:4]], ignore=masks))
    by_name = {row.source.path.name: row.error for row in rows}
    assert [name for name, error in by_name.items() if error] == ["001.png", "002.png"]


def test_nothing_of_what_is_ignored_enters_a_pixel_that_is_kept() -> None:
    geometry = Geometry((40, 48), (32, 36), (0.0,) * 3, (1.0,) * 3)
    rng = np.random.default_rng(1)
    for size in ((300, 360), (40, 48), (35, 42)):
        ignored = np.zeros(size, np.uint8)
        ignored[size[0] // 3 : size[0] // 2, size[1] // 4 : size[1] // 3] = 1
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        other = np.where(ignored[..., None] == 1, 255 - image, image).astype(np.uint8)
        keep = keep_at_input(ignored, geometry)
        changed = (to_input(image, geometry) != to_input(other, geometry)).any(0)
        assert keep.shape == (32, 36)
        assert not (changed & (keep == 1)).any()
        assert 0.5 < float(keep.mean()) < 0.99
        assert (cv2.dilate(changed.numpy().astype(np.uint8), np.ones((3, 3)))[keep.numpy() == 0]).all()


def test_the_map_does_not_fade_towards_what_is_ignored() -> None:
    keep = torch.ones(64, 64)
    keep[:, 32:] = 0
    masked, plain = ScoreMap((16, 16), (64, 64), 4.0, keep), ScoreMap((16, 16), (64, 64), 4.0)
    ones = torch.ones(1, 16, 16)
    assert torch.allclose(masked(ones)[0], keep, atol=1e-5)
    scores = torch.rand(1, 16, 16)
    assert torch.equal(masked(scores)[0, :, :12], plain(scores)[0, :, :12])  # 20 px off: past 4 sigma and a position
    # The same by the definition of a normalised convolution, from kept positions alone.
    inside = scores.clone()
    inside[:, :, 8:] = 0
    counted = torch.zeros(1, 16, 16)
    counted[:, :, :8] = 1
    expected = plain(inside)[0] / plain(counted)[0]
    assert torch.allclose(masked(scores)[0, :, :32], expected[:, :32], rtol=1e-4)


def test_ignored_positions_are_in_no_average() -> None:
    scores = torch.rand(6, 12, 10, dtype=torch.float64) + 0.5
    kept = torch.ones(6, 12, 10)
    kept[:, :, 6:] = 0
    spoiled = torch.where(kept == 1, scores, 1e6)

    def baseline(values: torch.Tensor) -> torch.Tensor:
        values = values * kept
        return position_baseline(kept.sum(0), values.sum(0))

    found = baseline(scores)
    assert torch.equal(found, baseline(spoiled))
    assert (found[:, 6:] == 1).all()
    assert float(found[:, :6].square().mean()) == pytest.approx(1)  # the baseline is a square root


def test_a_mask_is_read_once_for_all_images(bundle, mask: Path) -> None:  # type: ignore[no-untyped-def]
    ignore = open_ignore(mask, bundle)
    assert ignore.keep(Path("a"), (72, 80)) is ignore.keep(Path("b"), (720, 800))
    with pytest.raises(InputError):
        open_ignore(mask.parent / "gone.png", bundle)
    assert issubclass(ImageError, InputError)


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch"])
def test_exports_ignore_the_same(bundle, tmp_path: Path, format: str) -> None:  # type: ignore[no-untyped-def]
    """`export` itself compares scores and maps with this tool's; what the export shows of it is the bundle's."""
    if format != "torch":
        for module in ["onnx", "onnxscript", {"onnx": "onnxruntime"}.get(format, format)]:
            pytest.importorskip(module, reason="the extra is not installed")
    out = tmp_path / f"model{EXPORT_SUFFIXES[format]}"
    save_bundle(bundle, tmp_path / "model.safetensors")
    options = ExportOptions(format=format, resize=format != "torch", precision="float32")
    found = export(tmp_path / "model.safetensors", out, options)
    assert found.verification.max_relative < 1e-4
    if format == "torch":  # which cfa writes and does not run
        return
    clean, defect = (score(out, part(100, defect)) for defect in (False, True))
    assert defect.score == clean.score
    assert clean.score == pytest.approx(score(bundle, part(100), precision="float32").score, rel=1e-4)
    assert score(out, scratched(100)).label == "anomalous"
    np.testing.assert_array_equal(open_model(out).bundle.tensors["keep"], bundle.tensors["keep"])
    with pytest.raises(UsageError, match="--ignore does not go with an exported model"):
        predict(out, [part(0)], ignore="none")


@pytest.mark.parametrize("text", ["", "1 2", "-1 4097", "4096 x", "0 4097"])
def test_a_damaged_export_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"damaged|invalid literal"):
        keep_from_text(text, (64, 64))


@pytest.mark.parametrize("first", [0, 1])
def test_what_an_export_keeps_survives_its_text(first: int) -> None:
    keep = (np.random.default_rng(0).random((7, 9)) < 0.5).astype(np.float32)
    keep[0, 0] = first
    np.testing.assert_array_equal(keep_from_text(keep_to_text(keep), (7, 9)), keep)


def plain_metrics(maps, masks) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Pixel AUROC and F1-max of the pixels that remain."""
    values, truth = np.concatenate(maps), np.concatenate(masks)
    precision, recall, _ = precision_recall_curve(truth, values)
    return roc_auc_score(truth, values), float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))


@pytest.mark.parametrize("kind", ["one mask", "a folder"])
def test_a_benchmark_judges_the_pixels_that_remain(tmp_path: Path, kind: str) -> None:
    root, out = make_tree(tmp_path / "tree", ["bolt"]), tmp_path / "out"
    images = sorted((root / "bolt").glob("t*/*/*.png"))
    region = np.s_[10:28, 12:34]
    if kind == "one mask":
        ignore = write_mask(tmp_path / "mask.png", region, size=(96, 112))  # of twice their size
        ignored = np.s_[5:14, 6:17]
    else:
        ignore, ignored = tmp_path / "masks", region
        for image in images:
            write_mask(ignore / image.relative_to(root / "bolt"), region, size=(48, 56))
    config = FitConfig(weights="embedded", size=(64, 64), epochs=1)

    def run():  # type: ignore[no-untyped-def]
        return benchmark(open_dataset(str(root)), config, out=out, ignore=ignore, save_models=True)

    (found,) = run().evaluations
    model = load_bundle(out / "models/resnet18-seed0/bolt.safetensors")
    assert ("keep" in model.tensors) is (kind == "one mask")
    maps, masks = [], []
    keep = np.ones((48, 56), bool)
    keep[ignored] = False
    for path in (each for each in images if "test" in each.parts):
        prediction = score(model, str(path), ignore=None if kind == "one mask" else ignore)
        mask = cv2.imread(str(root / f"bolt/ground_truth/{path.parent.name}/{path.stem}_mask.png"), 0)
        maps.append(prediction.map[keep])
        masks.append(np.zeros(keep.sum(), bool) if mask is None else mask[keep] > 0)
    assert (found.pixel_auroc, found.pixel_f1max) == pytest.approx(plain_metrics(maps, masks), rel=1e-5)
    assert run().evaluations == (found,)  # taken up
    write_mask(ignore if kind == "one mask" else ignore / "test/good/000.png", np.s_[:9, :9], size=(48, 56))
    assert run().evaluations[0].data_sha256 != found.data_sha256  # what is ignored now is something else


def test_pixel_metrics_count_the_regions_that_remain() -> None:
    rng = np.random.default_rng(0)
    scores, mask, ignored = rng.random((40, 50)), np.zeros((40, 50), np.uint8), np.zeros((40, 50), np.uint8)
    mask[5:20, 5:30] = mask[30:35, 40:48] = 1
    ignored[:, 15:22] = 1  # cuts the first region in two
    left, right = np.s_[:, :15], np.s_[:, 22:]
    whole, parts = PixelMetrics(), PixelMetrics()
    whole.update(scores, mask, ignored=ignored)
    for side in (left, right):
        parts.update(scores[side], mask[side])
    assert whole.compute() == parts.compute()


def test_the_command(cfa, good_dir: Path, mask: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The README's way: fit with a mask, predict; overlays are hatched, and another mask starts another run."""
    photo = tmp_path / "photos" / "a.png"
    write_part(photo, 100, defect=True)
    small = ("--weights", "embedded", "--size", 64, "--epochs", 1)
    refused = cfa("fit", good_dir, "--ignore", "gone.png", *small)
    assert_refused(refused, 3, "There is nothing at gone.png", "Give a mask")
    assert cfa("fit", good_dir, "--ignore", mask, *small).code == 0
    assert "Ignored" in cfa("info").out
    assert cfa("predict", photo.parent, "--save", "overlay,map,mask").code == 0
    overlay = cv2.imread(str(tmp_path / "maps/overlays/a.png"))
    inside = overlay[36:50, 20:34].reshape(-1, 3)
    assert (inside == 176).all(axis=1).mean() == pytest.approx(1 / 3, abs=0.1)
    assert not (overlay[:, 50:] == 176).all(axis=2).any()
    assert not cv2.imread(str(tmp_path / "maps/maps/a.tiff"), -1)[36:50, 20:34].any()
    assert not cv2.imread(str(tmp_path / "maps/masks/a.png"), 0)[36:50, 20:34].any()
    again = ("predict", photo.parent, "--save", "overlay,map,mask", "--resume")
    assert cfa(*again).code == 0
    assert_refused(cfa(*again, "--ignore", "none"), 3, "was written with another ignore", "--force")
    assert_refused(cfa(*again, "--ignore", "gone.png"), 3, "There is nothing at gone.png", "Give a mask")


@pytest.mark.parametrize("kind", ["a folder", "one mask", "none"])
def test_calibrate_scores_as_predict_does_with_the_same_masks(  # type: ignore[no-untyped-def]
    fitted, bundle, mask: Path, tmp_path: Path, kind: str
) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for number in range(6):
        write_part(images / f"{number}.png", 200 + number, defect=True)
        if number < 5:
            write_mask(masks / f"{number}.png", PART)
    model = bundle if kind == "none" else fitted.bundle
    ignore = {"a folder": masks, "one mask": mask, "none": "none"}[kind]
    found = calibrate(model, images, replace_holdout=True, ignore=ignore)
    scores = sorted(prediction.score for prediction in predict(model, images, ignore=ignore))
    assert found.bundle.calibration.holdout_scores == pytest.approx(scores, rel=1e-5)
    without = calibrate(model, images, replace_holdout=True).bundle.calibration
    assert (without.holdout_scores[0] > found.bundle.calibration.holdout_scores[0]) is (kind != "none")
    assert any("predict --ignore" in warning for warning in found.warnings)
    assert any("1 of 6 images have no mask" in warning for warning in found.warnings) is (kind == "a folder")
    if kind == "one mask":  # pixels that are ignored say nothing of the extent of regions
        assert found.bundle.calibration.extent_threshold < without.extent_threshold
    with pytest.raises(InputError, match="There is nothing at gone"):
        calibrate(model, images, ignore="gone")


def test_overlays_of_several_models_are_hatched_as_each_ones_are(bundle, fitted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "models").mkdir()
    for name, each in {"marked": bundle, "plain": fitted.bundle}.items():
        save_bundle(each, tmp_path / "models" / f"{name}.safetensors")
        write_part(tmp_path / "photos" / name / "a.png", 100)
    for match in (False, True):
        out = tmp_path / f"out-{match}"
        with predict(tmp_path / "models", tmp_path / "photos", out=out, match=match) as run:
            chosen = {prediction.source.name: prediction.model for prediction in run}
        for name, model in chosen.items():
            overlay = cv2.imread(str(out / "overlays" / name))
            assert (overlay[PART] == 176).all(axis=2).any() == (model == "marked")
        assert match or set(chosen.values()) == {"marked", "plain"}
