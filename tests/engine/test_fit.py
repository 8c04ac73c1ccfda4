"""The verb `fit`: what it makes of good images, and that it makes the same of the same."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cfa_cli import FitConfig, fit, load_bundle, save_bundle
from cfa_cli.data.statistics import by_score
from cfa_cli.engine.thresholds import split_holdout
from cfa_cli.errors import InputError, UsageError
from cfa_cli.geometry import full_size
from cfa_cli.records import ImageStatistics
from tests.conftest import GOOD_IMAGES, write_part

SMALL = FitConfig(weights="embedded", size=(32, 32), stride=4, gamma_c=1, epochs=1)


def shapes(bundle):
    return {name: tensor.shape for name, tensor in bundle.tensors.items() if not name.startswith("backbone.")}


def test_the_bundle_has_the_contracts_tensors(fitted):
    bundle = fitted.bundle
    assert shapes(bundle) == {
        "descriptor.weight": (224, 450, 1, 1),
        "descriptor.bias": (224,),
        "bank": (128, 224),
        "radius": (),
        "baseline": (8, 8),
        **({"ranges": (12,)} if bundle.backbone.precision == "int8" else {}),
    }
    assert bundle.grid == (8, 8)
    assert bundle.backbone.layers == ("layer1", "layer2", "layer3")
    assert all(t.dtype == np.float32 and np.isfinite(t).all() for t in bundle.tensors.values())
    assert "backbone.conv1.weight" in bundle.tensors
    assert not any(name.startswith(("backbone.layer4", "backbone.fc")) for name in bundle.tensors)


def test_images_are_counted_held_out_and_remembered(fitted, good_dir):
    assert (fitted.train_images, fitted.holdout_images, fitted.skipped) == (19, 5, ())
    assert len(fitted.bundle.calibration.holdout_scores) == 5
    assert len(fitted.losses) == fitted.bundle.config.epochs == 2
    assert fitted.losses[1] < fitted.losses[0]
    assert fitted.bundle.tensors["radius"] != np.float32(1e-5)  # it is learned
    assert fitted.bundle.provenance.images == GOOD_IMAGES
    assert fitted.bundle.provenance.seed == 1
    assert fitted.seconds > 0


def test_what_each_held_out_image_was_like_is_kept_beside_its_score(fitted, good_dir, model):
    paths = sorted(good_dir.rglob("*.png"))
    _, held = split_holdout(len(paths), fitted.bundle.config.holdout, 1)
    images = [cv2.imread(str(paths[index])) / 255 for index in held]
    found = load_bundle(model).holdout
    assert found == fitted.bundle.holdout
    assert sorted(found.brightness) == pytest.approx(sorted(image.mean() for image in images), abs=1e-4)
    assert sorted(found.contrast) == pytest.approx(sorted(image.mean(2).std() for image in images), abs=1e-4)
    statistics = [ImageStatistics(40, 40, True, score / 10, score / 20, score / 30) for score in (3, 1, 2)]
    found = by_score([3.0, 1.0, 2.0], statistics, ["three", "one", "two"])
    assert (found.brightness, found.names) == ((0.1, 0.2, 0.3), ("one", "two", "three"))


def bytes_of(bundle, folder):
    save_bundle(bundle, folder / "model.safetensors", force=True)
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_same_seed_and_images_give_the_same_bytes(good_dir, tmp_path):
    torch.manual_seed(0)
    first = bytes_of(fit(good_dir, SMALL).bundle, tmp_path)
    # The same images, written in another order to another place; torch's own generator has moved on.
    copy = tmp_path / "elsewhere"
    for path in sorted(good_dir.rglob("*.png"), reverse=True):
        (copy / path.relative_to(good_dir)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / path.relative_to(good_dir))
    torch.rand(5)
    assert bytes_of(fit(copy, SMALL).bundle, tmp_path) == first
    assert bytes_of(fit(copy, replace(SMALL, seed=1)).bundle, tmp_path) != first
    write_part(copy / "000.png", 77)
    assert bytes_of(fit(copy, SMALL).bundle, tmp_path) != first


def test_the_hold_out_is_seeded_and_complete():
    train, held = split_holdout(50, 0.2, seed=0)
    assert len(held) == 10
    assert sorted(train + held) == list(range(50))
    assert split_holdout(50, 0.2, seed=0) == (train, held)
    assert split_holdout(50, 0.2, seed=1)[1] != held
    for count, share in [(2, 0.01), (2, 0.99), (3, 0.5), (10, 0.999)]:
        train, held = split_holdout(count, share, seed=0)
        assert len(train) >= 1
        assert len(held) >= 1


def test_held_out_images_are_not_trained_on(good_dir, tmp_path):
    """Whatever the held-out images show, the descriptor and the bank are the same."""
    paths = sorted(good_dir.rglob("*.png"))
    first = fit(paths, SMALL)
    _, held = split_holdout(len(paths), SMALL.holdout, SMALL.seed)
    changed = list(paths)
    for index in held:
        changed[index] = write_part(tmp_path / f"{index}.png", 1000 + index, defect=True)
    second = fit(changed, SMALL)
    for name in shapes(first.bundle).keys() - {"baseline"}:
        np.testing.assert_array_equal(first.bundle.tensors[name], second.bundle.tensors[name])
    assert second.bundle.calibration.threshold > first.bundle.calibration.threshold


def test_no_epochs_leave_the_descriptor_as_it_was_drawn(good_dir):
    found = fit(good_dir, replace(SMALL, epochs=0, whiten=False))
    torch.manual_seed(SMALL.seed)
    np.testing.assert_array_equal(
        found.bundle.tensors["descriptor.weight"], torch.nn.Conv2d(450, 224, 1).weight.detach()
    )
    assert found.losses == ()
    assert found.bundle.tensors["radius"] == np.float32(1e-5)


@pytest.mark.parametrize(
    ("changes", "expected", "grid", "input_size"),
    [
        ({"layers": ("4", "8")}, {"descriptor.weight": (96, 194, 1, 1), "bank": (64, 96)}, (8, 8), (32, 32)),
        ({"layers": ("layer2",)}, {"descriptor.weight": (64, 130, 1, 1), "bank": (16, 64)}, (4, 4), (32, 32)),
        ({"gamma_c": 4}, {"bank": (16, 224)}, (8, 8), (32, 32)),
        ({"stride": 8}, {"descriptor.weight": (224, 450, 1, 1), "bank": (16, 224)}, (4, 4), (32, 32)),
        ({"stride": 8, "gamma_c": 0.5}, {"bank": (32, 224)}, (4, 4), (32, 32)),
        ({"stride": 16, "gamma_c": 0.5}, {"bank": (8, 224)}, (2, 2), (32, 32)),
        ({"stride": 8, "size": (40, 70)}, {"bank": (45, 224)}, (5, 9), (40, 70)),
        ({"gamma_d": 7}, {"descriptor.weight": (64, 450, 1, 1), "bank": (64, 64)}, (8, 8), (32, 32)),
        ({"size": (32, 64)}, {"bank": (8 * 16, 224)}, (8, 16), (32, 64)),
        ({"size": (72, 72), "crop": (64, 32)}, {"bank": (16 * 8, 224)}, (16, 8), (64, 32)),
        ({"bank": "ema"}, {"bank": (64, 224)}, (8, 8), (32, 32)),
        ({"bank": "mean"}, {"bank": (64, 224)}, (8, 8), (32, 32)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_show_in_the_tensors(good_dir, changes, expected, grid, input_size):
    bundle = fit(sorted(good_dir.glob("*.png"))[:6], replace(SMALL, **changes)).bundle
    found = shapes(bundle)
    assert {name: found[name] for name in expected} == expected
    assert (bundle.grid, bundle.geometry.input_size) == (grid, input_size)
    assert bundle.config == replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            (50, 150),
            (128, 384),
        ),  # at least 224² px: 224 / sqrt(3) = 129.3 and 224 * sqrt(3) = 388.0, in multiples of 16
        ((160, 480), (160, 480)),  # within: as they are
        ((500, 1500), (256, 768)),  # at most 448² px: 258.7 and 776.0
        ((40, 800), (80, 640)),  # 1:8 at most: 224 / sqrt(8) = 79.2 and 224 * sqrt(8) = 633.6
    ],
)
def test_auto_size_keeps_the_images_aspect_and_does_not_enlarge_them_needlessly(tmp_path, source, expected):
    for number in range(3):
        write_part(tmp_path / f"{number}.jpg", number, size=source)
    size = fit(tmp_path, replace(SMALL, size=None, layers=("16",), epochs=0)).bundle.geometry.size
    assert size == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ((100, 100), (224, 224)),  # as much as auto enlarges
        ((400, 400), (320, 320)),  # auto: 400 x 400
        ((500, 1500), (192, 560)),  # at most 320² px: 184.8 and 554.3, in multiples of 16 (of auto: 256 x 768)
    ],
)
def test_small_size_has_up_to_320_px_a_side_in_the_images_aspect(tmp_path, source, expected):
    for number in range(3):
        write_part(tmp_path / f"{number}.png", number, size=source)
    bundle = fit(tmp_path, replace(SMALL, size="small", layers=("16",), epochs=0)).bundle
    assert bundle.geometry.size == bundle.config.size == expected


def test_full_size_is_the_images_own_and_kept(tmp_path):
    for number, size in enumerate([(100, 150), (90, 145), (70, 500)]):
        write_part(tmp_path / f"{number}.png", number, size=size)
    bundle = fit(tmp_path, replace(SMALL, size="full", layers=("16",), epochs=0, neighbours=1)).bundle
    assert bundle.geometry.size == bundle.config.size == (96, 144)  # of the medians, 90 x 150


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(4000, 3000)], (4000, 3008)),
        ([(7000, 10000)], (5728, 8192)),  # 7000 * 8192 / 10000 = 5734.4
        ([(100, 60000)], (32, 8192)),
        ([(40, 33), (60, 33)], (48, 32)),
    ],
)
def test_full_size_keeps_to_multiples_of_16_and_to_8192_px(sizes, expected):
    assert full_size(sizes) == expected


def test_mixed_sizes_and_unreadable_images(good_dir, tmp_path):
    folder = tmp_path / "good"
    shutil.copytree(good_dir, folder)
    write_part(folder / "wide.png", 5, size=(64, 200))
    write_part(folder / "tiny.png", 5, size=(1, 1))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "000.png").read_bytes()[:500])
    found = fit(folder, SMALL)
    assert [(Path(path).name, reason) for path, reason in found.skipped] == [
        ("cut.png", f"{folder / 'cut.png'} is cut off: its end is missing."),
        ("empty.jpg", f"{folder / 'empty.jpg'} is empty (0 bytes)."),
        ("tiny.png", f"{folder / 'tiny.png'} is 1 x 1 px; at least 32 px a side are needed."),
    ]
    assert found.bundle.provenance.images == GOOD_IMAGES + 1
    assert found.train_images + found.holdout_images == GOOD_IMAGES + 1


def test_what_is_left_out_makes_no_difference(good_dir, tmp_path):
    folder = tmp_path / "good"
    shutil.copytree(good_dir, folder)
    (folder / "005b.png").write_bytes(b"")
    first, second = fit(folder, SMALL).bundle, fit(good_dir, SMALL).bundle
    assert first.calibration == second.calibration
    assert first.provenance == second.provenance
    for name in shapes(first):
        np.testing.assert_array_equal(first.tensors[name], second.tensors[name])


def test_two_images_are_the_fewest_and_few_are_warned_about(tmp_path):
    for number in range(2):
        write_part(tmp_path / f"{number}.png", number)
    found = fit(tmp_path, SMALL)
    assert (found.train_images, found.holdout_images) == (1, 1)
    assert found.warnings[0].startswith("Only 2 images")
    assert "rests on 1 held-out images" in found.warnings[1]
    assert "5% and 95%" in found.warnings[1]
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"^Only 1 of 2 images can be used; at least 2 are needed\.$") as caught:
        fit(tmp_path, SMALL)
    assert "is empty" in str(caught.value.hint)
    with pytest.raises(InputError, match="At least 2 good images are needed; found 1"):
        fit([tmp_path / "0.png"], SMALL)


def test_enough_images_are_no_reason_to_warn(fitted):
    assert fitted.warnings == ()


def test_whitening_is_one_linear_map_of_descriptor_and_bank(good_dir):
    plain, whitened = (fit(good_dir, replace(SMALL, whiten=whiten)).bundle.tensors for whiten in (False, True))
    weight, bias, bank = (torch.from_numpy(plain[f]).double() for f in ("descriptor.weight", "descriptor.bias", "bank"))
    changed = [torch.from_numpy(whitened[f]).double() for f in ("descriptor.weight", "descriptor.bias", "bank")]
    change = changed[0].flatten(1) @ torch.linalg.pinv(weight.flatten(1))  # 224 rows, independent
    torch.testing.assert_close(change @ bias, changed[1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(bank @ change.T, changed[2], atol=1e-3, rtol=1e-3)
    assert float((change - torch.eye(len(change))).abs().max()) > 0.05
    assert float(plain["radius"]) == float(whitened["radius"])


def test_progress_counts_up_to_its_total(good_dir):
    steps = []
    fit(good_dir, replace(SMALL, epochs=3), progress=steps.append)
    phases = list(dict.fromkeys(step.phase for step in steps))
    assert phases == ["reading", "building the bank", "training", "whitening", "calibrating"]
    for phase in phases:
        of_phase = [step for step in steps if step.phase == phase]
        done = [step.done for step in of_phase]
        assert done == sorted(set(done))
        assert {step.total for step in of_phase} == {done[-1]}
    assert {step.total for step in steps if step.phase == "building the bank"} == {19}  # images, not passes
    training = [step for step in steps if step.phase == "training"]
    assert [step.epoch for step in training] == sorted([1, 2, 3] * 5)  # 19 images in batches of 4
    assert all(step.epochs == 3 and step.loss is not None for step in training)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma_c": 0}, "gamma_c 0"),
        ({"gamma_c": 11}, "5 centroids"),
        ({"layers": ("16",)}, "4 centroids"),
        ({"gamma_d": 0}, "gamma_d 0"),
        ({"epochs": -1}, "epochs -1"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"lr": 0.0}, "lr 0"),
        ({"lr": -1.0}, "lr -1"),
        ({"lr": float("nan")}, "lr nan"),
        ({"lr": float("inf")}, "lr inf"),
        ({"lr": 1e30}, "diverged"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**32}, "seed 4294967296"),
        ({"holdout": 0.0}, "holdout 0"),
        ({"holdout": 1.5}, "holdout 1.5"),
        ({"max_fpr": 0.0}, "max_fpr 0"),
        ({"size": (8, 8)}, "size 8 is"),
        ({"size": (64, 9000)}, "size 9000 is"),
        ({"crop": (96, 32)}, "crop is larger"),
        ({"crop": (32, 32), "size": None}, "crop needs"),
        ({"layers": ()}, "names no layer"),
        ({"layers": ("layer9",)}, "layer9"),
        ({"bank": "k-means"}, "bank 'k-means'"),
        ({"sigma": -1}, "sigma -1"),
        ({"precision": "fp32"}, "precision 'fp32'"),
        ({"epochs": "x"}, "epochs 'x' is not a whole number"),
        ({"epochs": 1.5}, "epochs 1.5 is not a whole number"),
        ({"epochs": True}, "epochs True"),
        ({"size": 64}, "size 64 is not a size"),
        ({"size": (64, 64, 3)}, "size"),
        ({"backbone": None}, "backbone None is not a text"),
        ({"normalize_positions": 1}, "normalize_positions 1 is not True or False"),
        ({"device": "toaster"}, "toaster"),
        ({"precision": "float16", "device": "cpu"}, "float16"),
    ],
    ids=str,
)
def test_options_out_of_range(good_dir, changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        fit(sorted(good_dir.glob("*.png"))[:4], replace(SMALL, **changes))
    assert caught.value.hint
