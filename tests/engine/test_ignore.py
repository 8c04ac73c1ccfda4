"""What is ignored makes no difference, and what is beside it is seen as before."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cfa_cli import FitConfig, fit, load_bundle, predict, save_bundle
from cfa_cli.engine.ignore import open_ignore
from cfa_cli.errors import ImageError, InputError, UsageError
from cfa_cli.geometry import keep_at_input, to_input
from cfa_cli.model.scoremap import ScoreMap, position_baseline
from cfa_cli.records import Geometry
from tests.conftest import draw_part

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
    assert len(bundle.tensors["bank"]) < bundle.grid[0] * bundle.grid[1]


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
        ([np.s_[:, 8:], np.s_[36:, :]], (72, 80), r"leaves \d+ of the model's 256 positions; at least 16 are needed"),
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


def test_exported_models_take_no_other_mask(fitted, mask: Path) -> None:  # type: ignore[no-untyped-def]
    from cfa_cli.engine.model import Model, open_model

    class Exported:
        geometry = fitted.bundle.geometry

    model = Model(open_model(fitted.bundle).bundle, Exported())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--ignore does not go with an exported model"):
        model.open_ignore(mask)


def test_a_mask_is_read_once_for_all_images(bundle, mask: Path) -> None:  # type: ignore[no-untyped-def]
    ignore = open_ignore(mask, bundle)
    assert ignore.keep(Path("a"), (72, 80)) is ignore.keep(Path("b"), (720, 800))
    with pytest.raises(InputError):
        open_ignore(mask.parent / "gone.png", bundle)
    assert issubclass(ImageError, InputError)
