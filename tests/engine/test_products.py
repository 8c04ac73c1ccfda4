"""A folder of models: each image by the model of its folder, or by the one that fits it best."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfa_cli import FitConfig, fit_each, predict
from cfa_cli.engine import products as engine
from cfa_cli.engine.predict_options import PredictOptions
from cfa_cli.engine.products import ModelFolder
from cfa_cli.errors import BundleError, UsageError
from tests.conftest import Outcome, draw_part

NAMES = ("bolt", "nut", "plate")


def draw(name: str, number: int, defect: bool = False) -> np.ndarray:
    """Three products of one size and brightness: striped, turned, and dotted."""
    part = draw_part(number, defect, size=(80, 80))
    if name == "nut":
        return np.rot90(part).copy()
    if name == "plate":
        dots = 25 * np.sin(np.arange(80) / 2)[:, None, None] * np.sin(np.arange(80) / 2)[None, :, None]
        noise = np.random.default_rng(number).normal(0, 4, (80, 80, 3))
        return (114 + dots + noise).clip(0, 255).astype(np.uint8)
    return part


def write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("products")
    for name in NAMES:
        for number in range(12):
            write(parent / name / f"{number}.png", draw(name, number))
    config = FitConfig(weights="embedded", size=(64, 64), epochs=1, max_fpr=0.25)
    out = parent.parent / f"{parent.name}-models"
    assert all(each.error is None for each in fit_each(parent, out, config))
    return out


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    folder = tmp_path / "batch"
    for name in NAMES:
        for number in range(20, 23):
            write(folder / name / "late" / f"{number}.png", draw(name, number))
    write(folder / "bolt" / "bad.png", draw("bolt", 30, defect=True))
    write(folder / "gear" / "1.png", draw("bolt", 31))
    (folder / "nut" / "cut.png").write_bytes(b"")
    return folder


def table(out: str) -> list[dict[str, str]]:
    with Path(out, "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_image_takes_the_model_of_its_folder(
    cfa: Callable[..., Outcome], models: Path, batch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MAX_OPEN", 1)
    done = cfa("predict", batch, "-m", models, "--json")
    assert done.code == 8
    document = json.loads(done.out)
    assert document["models"] == {"bolt": 4, "nut": 3, "plate": 3}
    assert document["threshold"] is None
    rows = {row["path"]: row for row in table("maps")}
    assert len(rows) == 12
    for path, row in rows.items():
        name = Path(path).relative_to(batch).parts[0]
        if name == "gear":
            assert row["error"] == f"No model is named like a folder of {path} (there are bolt, nut, plate)."
            continue
        assert row["model"] == name
        # Each as by its own model alone.
        (alone,) = predict(models / f"{name}.safetensors", path)
        assert (row["error"] != "") == (alone.score is None)
        if alone.score is not None:
            assert float(row["score"]) == pytest.approx(alone.score, rel=1e-4)
            assert float(row["threshold"]) == pytest.approx(alone.threshold, rel=1e-6)
            assert row["label"] == alone.label
    assert rows[str(batch / "bolt" / "bad.png")]["label"] == "anomalous"
    assert (Path("maps") / "overlays" / "plate" / "late" / "20.png").is_file()
    page = Path("maps/report.html").read_text()
    assert '"several": true' in page
    assert '"threshold": 1.0' in page
    # A product's own folder as the input, and a run that is taken up.
    assert cfa("predict", batch / "nut" / "late", batch / "bolt", "-m", models, "-o", "two").code == 0
    assert {row["model"] for row in table("two")} == {"bolt", "nut"}
    again = cfa("predict", batch, "-m", models, "--resume", "--json")
    assert json.loads(again.out)["done_before"] == 10


def test_match_takes_the_model_that_fits_best_and_says_which(
    cfa: Callable[..., Outcome], models: Path, batch: Path
) -> None:
    done = cfa("predict", batch, "-m", models, "--match")
    assert done.code == 8  # one is cut
    for row in table("maps"):
        name = Path(row["path"]).relative_to(batch).parts[0]
        expected = "" if row["error"] else "bolt" if name == "gear" else name
        assert row["model"] == expected
    assert "Models" in done.out
    frames = [np.ascontiguousarray(draw(name, 40)[..., ::-1]) for name in NAMES]
    found = list(predict(models, frames, match=True))
    assert [prediction.model for prediction in found] == list(NAMES)
    for prediction, frame in zip(found, frames, strict=True):
        assert prediction.map is not None
        np.testing.assert_array_equal(prediction.image, frame)
    assert [prediction.error is None for prediction in predict(models, frames)] == [False] * 3


def test_what_cannot_be_is_said(cfa: Callable[..., Outcome], models: Path, batch: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="There are no models in"):
        predict(tmp_path / "empty", batch)
    with pytest.raises(UsageError, match="--threshold is one model's"):
        predict(models, batch, threshold=2.0)
    with pytest.raises(UsageError, match="--match chooses among several models"):
        predict(models / "bolt.safetensors", batch, match=True)
    assert ModelFolder(models, PredictOptions(max_fpr=0.4)).bundles["nut"].calibration.max_fpr == 0.4
    (tmp_path / "empty" / "bad.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(BundleError, match=r"bad\.safetensors"):
        predict(tmp_path / "empty", batch)
