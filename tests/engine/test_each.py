"""Several products: a model for each sub-folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cfa_cli import FitConfig, fit, fit_each, load_bundle
from cfa_cli.errors import InputError
from tests.conftest import Outcome, write_part

QUICK = ("--weights", "embedded", "--size", "32", "--epochs", "1")


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def products(tmp_path: Path) -> Path:
    """Two products, one of which has a damaged image, and three folders that cannot be fitted."""
    parent = tmp_path / "products"
    for number in range(6):
        write_part(parent / "bolt" / f"{number}.png", number)
        write_part(parent / "nut" / "late" / f"{number}.png", number, size=(80, 64))
    write_part(parent / "one" / "0.png", 0)
    (parent / "empty").mkdir()
    (parent / ".hidden").mkdir()
    write_part(parent / "set" / "train" / "good" / "0.png", 0)
    write_part(parent / "set" / "test" / "bad" / "0.png", 0)
    return parent


def test_each_product_has_a_row_and_one_that_fails_ends_no_other(cfa: Callable[..., Outcome], products: Path) -> None:
    done = cfa("fit", products, "--each", *QUICK)
    assert done.code == 8
    assert names("models") == ["bolt.safetensors", "nut.safetensors"]
    rows = [line.split() for line in done.out.splitlines()]
    products_named = [row[0] for row in rows[2:] if row[0] in ("bolt", "empty", "nut", "one", "set")]
    assert products_named == ["bolt", "empty", "nut", "one", "set"]  # the last cell of some goes on below
    assert rows[2][1:3] == ["6", "1"]
    for name, reason in [
        ("one", "At least 2 good images are needed; found 1."),
        ("empty", "There are no files in"),
        ("set", "a data set in MVTec's layout"),
    ]:
        (line,) = [line for line in done.err.splitlines() if line.startswith(f"Warning: {name} has no model")]
        assert reason in line
    again = json.loads(cfa("fit", products, "--each", *QUICK, "--out", "models", "--json").out)
    errors = {each["product"]: each["error"] for each in again["products"]}
    assert errors["bolt"] == "models/bolt.safetensors exists already."
    (products / "bolt" / "cut.png").write_bytes(b"")
    for name in ("one", "empty", "set"):
        (products / name).rename(products / f".{name}")
    done = cfa("fit", products, "--each", *QUICK, "--out", "new", "--json", "--report")
    assert done.code == 8  # an image could not be read
    assert names("new") == ["bolt.html", "bolt.safetensors", "nut.html", "nut.safetensors"]
    bolt, nut = json.loads(done.out)["products"]
    assert (bolt["error"], bolt["model"], len(bolt["skipped"])) == (None, "new/bolt.safetensors", 1)
    assert nut["geometry"]["size"] == [32, 32]


def test_each_model_is_the_one_that_fit_makes(products: Path, tmp_path: Path) -> None:
    config = FitConfig(weights="embedded", size=(32, 32), epochs=1)
    seen = []
    found = {
        each.name: each
        for each in fit_each(products, tmp_path / "m", config, progress=lambda step, name: seen.append(name))
    }
    assert set(seen) == {"bolt", "nut"}
    for name in ("bolt", "nut"):
        alone = fit(products / name, config).bundle
        assert (load_bundle(found[name].saved.model).tensors["bank"] == alone.tensors["bank"]).all()
    assert found["one"].saved is None
    for wrong, message in [("none", "There is no folder"), ("products/bolt", "There are no folders in")]:
        with pytest.raises(InputError, match=message):
            fit_each(tmp_path / wrong, tmp_path / "m")
