"""Whatever is given, the answer is one sentence, a hint and the right exit code."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cfa_cli import __main__, load_bundle
from tests.conftest import assert_refused, write_part
from tests.engine.trees import make_tree
from tests.test_atomic import largest_file

QUICK = ("--weights", "embedded", "--size", 32, "--epochs", 1)


@pytest.fixture
def here(tmp_path, good_dir, model):
    """A working folder: good/ with six images, the model, and what people mistake for images and models."""
    for path in sorted(good_dir.glob("*.png"))[:6]:
        (tmp_path / "good").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "good")
    shutil.copy(model, tmp_path / "cfa-model.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no image")
    write_part(tmp_path / "one" / "only.png", 0)
    write_part(tmp_path / "photo.png", 0)
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04 and so on")
    save_file({"conv1.weight": np.zeros((4, 3, 3, 3), np.float32)}, tmp_path / "weights.safetensors")
    make_tree(tmp_path, ["bottle"], train=3, good=1, bad=1)
    return tmp_path


FIT = [
    ("nothing", 3, "There is no folder nothing.", "Check the path"),
    ("god", 3, "There is no folder god.", "Did you mean good?"),
    ("empty", 3, "no files in empty", "Check the path"),
    ("notes", 3, "other files: 1 x .txt", "another folder"),
    ("photo.png", 3, "photo.png is a file, not a folder", "Give the folder"),
    ("one", 3, "found 1", "20 or more"),
    ("bottle", 3, "MVTec's layout", "cfa fit bottle/train/good"),
    ("bottle/test", 3, "MVTec's layout", "train/good"),
    ("good --backbone resnet81", 5, "no backbone called 'resnet81'", "resnet18"),
    ("good --backbone qqqqqq", 5, "no backbone called 'qqqqqq'", "resnet18"),
    ("good --layers layer1,layer9", 2, "no layer 'layer9'", "layer3 (stride 16)"),
    ("good --layers ,", 2, "names no layer", "--layers 4,8,16"),
    ("good --device cuda:77", 6, "'cuda:77' is not there", "--device cpu"),
    ("good --device mps", 6, "'mps' is not there", "--device cpu"),
    ("good --device abacus", 2, "no device called 'abacus'", "cuda"),
    ("good --size 8", 2, "size 8 is out of range", "32 to 8192"),
    ("good --size abc", 2, "--size abc is no size", "256x640"),
    ("good --size -5", 2, "--size -5 is no size", "256x640"),
    ("good --size 64x64x64", 2, "no size", "256x640"),
    ("good --crop 96", 2, "crop is larger than size", "--crop 224"),
    ("good --size full --crop 32", 2, "crop needs a fixed size", "--crop 224"),
    ("good --size fulll", 2, "--size fulll is no size", "256x640"),
    ("good --size auto --crop 32", 2, "crop needs a fixed size", "--crop 224"),
    ("good --holdout 1.5", 2, "holdout 1.5", "0.2"),
    ("good --holdout 0", 2, "holdout 0", "0.2"),
    ("good --max-fpr 0", 2, "max_fpr 0", "0.05"),
    ("good --max-fpr 1", 2, "max_fpr 1", "0.05"),
    ("good --lr -1", 2, "lr -1", "0.001"),
    ("good --lr 1e30", 2, "diverged", "--lr"),
    ("good --epochs -1", 2, "epochs -1", "0"),
    ("good --gamma-c 0", 2, "gamma_c 0", "more than 0"),
    ("good --gamma-c 60", 2, "centroids", "--gamma-c"),
    ("good --gamma-d -3", 2, "gamma_d -3", "1"),
    ("good --batch-size 0", 2, "batch_size 0", "1"),
    ("good --seed -1", 2, "seed -1", "0"),
    ("good --epochs many", 2, "Error: Invalid value for '--epochs': it takes a whole number.", "cfa fit --help"),
    ("good --lr fast", 2, "Error: Invalid value for '--lr': it takes a number.", "cfa fit --help"),
    ("good --bank median", 2, "Error: Invalid value for '--bank': 'median' is not one of", "cfa fit --help"),
    (
        "good --preset papr",
        2,
        "'papr' is not one of 'default', 'fast', 'paper'.",
        "Hint: Did you mean paper? See `cfa fit",
    ),
    ("good --epocs 3", 2, "Error: No such option: --epocs.", "Hint: Did you mean --epochs? See `cfa fit --help`."),
    ("good more", 2, "Error: Got an argument too many (more).", "cfa fit --help"),
    ("", 2, "Missing argument", "cfa fit --help"),
    ("good --weights nothing.pth", 5, "no weights file nothing.pth", "imagenet"),
    ("good --weights model.pth", 5, "cannot be read as weights", "state_dict"),
    ("good --weights weights.safetensors", 5, "do not fit resnet18", "--backbone"),
    ("good --weights embedded --backbone resnet34", 5, "embedded weights are for resnet18", "--weights"),
    ("good --out photo.png/model.safetensors", 3, "photo.png is a file", "--out"),
    ("good --out empty", 3, "empty is a folder", "--out"),
    ("good --out photo.png", 3, "exists already", "--force"),
]


@pytest.mark.parametrize(("line", "code", "message", "hint"), FIT, ids=[f"fit {case[0]}" for case in FIT])
def test_fit(cfa, here, line, code, message, hint):
    before = sorted(here.rglob("*"))
    assert_refused(cfa("fit", *QUICK, "--out", "new.safetensors", *line.split()), code, message, hint)
    assert sorted(here.rglob("*")) == before


PREDICT = [
    ("", 2, "Give either images", "cfa predict photos/"),
    ("xyz", 3, "no file or folder xyz", "Check the path"),
    ("foto.png", 3, "no file or folder foto.png", "Did you mean photo.png?"),
    ("*.gif", 3, "*.gif matches no images", "folder"),
    ("empty", 3, "no files in empty", "Check the path"),
    ("notes", 3, "other files: 1 x .txt", "another folder"),
    ("cfa-model.safetensors", 3, "is a model, not an image", "--model cfa-model.safetensors"),
    ("good --model photo.png", 4, "photo.png is an image, not a model", ".safetensors"),
    ("good --model good", 4, "There are no models in good", "cfa fit PARENT --each"),
    ("good --model nothing.safetensors", 4, "no model at nothing.safetensors", "cfa fit"),
    ("good --model weights.safetensors", 4, "no model of cfa", "--weights"),
    ("good --model notes/a.txt", 4, "no whole safetensors file", "cfa fit"),
    ("good --device cuda:77", 6, "'cuda:77' is not there", "--device cpu"),
    ("good --precision float16 --device cpu", 2, "float16", "--precision"),
    ("good --out photo.png", 3, "photo.png is a file, not a folder.", "--out"),
    ("good --out photo.png/maps", 3, "Cannot write photo.png", "--out"),
    ("good --threshold -1", 2, "--threshold -1", "cfa info"),
    ("good --max-fpr 2", 2, "--max-fpr 2", "0.05"),
    ("good --save everything", 2, "'everything'", "overlay"),
    ("good --sav map", 2, "--sav", "cfa predict --help"),
]


@pytest.mark.parametrize(("line", "code", "message", "hint"), PREDICT, ids=[f"predict {case[0]}" for case in PREDICT])
def test_predict(cfa, here, line, code, message, hint):
    before = sorted(here.rglob("*"))
    assert_refused(cfa("predict", *line.split()), code, message, hint)
    assert sorted(here.rglob("*")) == before


def test_other_words(cfa, here):
    assert_refused(cfa("ft"), 2, "No such command 'ft'.", "Hint: Did you mean fit? See `cfa --help`.")
    assert_refused(cfa("--nothing"), 2, "--nothing", "cfa --help")
    assert_refused(cfa("info", "photo.png"), 4, "is an image, not a model", ".safetensors")
    assert_refused(cfa("info", "none.safetensors"), 4, "no model at none.safetensors", "cfa fit")
    help_text = cfa()
    assert help_text.code == 0
    assert "predict" in help_text.out


def test_a_damaged_model(cfa, here):
    path = here / "cfa-model.safetensors"
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:4], b"", b"\xff" * 8 + data[8:], data.replace(b'"cfa"', b'"cfb"', 1)):
        path.write_bytes(damaged)
        for command in (["predict", "good"], ["info"]):
            assert_refused(cfa(*command), 4, "cfa-model.safetensors", "")
    assert not (here / "maps").exists()


def test_a_newer_model(cfa, here):
    path = here / "cfa-model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'\\"format\\": 2', b'\\"format\\": 9', 1))
    assert_refused(cfa("predict", "good"), 4, "format 9", "pipx upgrade")


def test_a_full_disk_while_the_model_is_written(cfa, here):
    with largest_file(1_000_000):
        done = cfa("fit", "good", *QUICK, "--out", "new/model.safetensors")
    assert_refused(done, 3, "Cannot write new/model.safetensors: ", "--out")
    assert list((here / "new").iterdir()) == []


def test_a_full_disk_while_results_are_written(cfa, here):
    whole = cfa("predict", "good", "--save", "overlay,map", "--out", "whole")
    assert whole.code == 0
    with largest_file(6_000):  # a map has 72 x 80 x 4 bytes
        done = cfa("predict", "good", "--save", "map")
    assert_refused(done, 3, "Cannot write maps/", "--out")
    assert [path for path in (here / "maps").rglob("*") if path.suffix in (".png", ".tiff", ".jpg")] == []
    rows = (here / "maps" / "scores.csv").read_text().splitlines()[1:]
    assert all("Cannot write maps/" in row for row in rows)  # no row without its files or what kept them


def test_a_full_disk_is_named(cfa, here, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    done = cfa("fit", "good", *QUICK, "--out", "new.safetensors")
    assert_refused(done, 3, "Cannot write new.safetensors: No space left on device", "--out")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=["Python", "torch", "system"],
)
def test_memory_that_runs_out(cfa, here, monkeypatch, error):
    def exhausted(*arguments, **options):
        raise error

    monkeypatch.setattr("cfa_cli.engine.fit.train_descriptor", exhausted)
    assert_refused(cfa("fit", "good", *QUICK, "--out", "new.safetensors"), 6, "not enough memory", "--size")


def test_a_bug_is_owned_up_to_and_logged(cfa, here, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "state"))

    def broken(*arguments, **options):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("cfa_cli.engine.fit.train_descriptor", broken)
    done = cfa("fit", "good", *QUICK, "--out", "new.safetensors")
    assert done.code == 70
    assert "Error: This is a bug in cfa: ZeroDivisionError: division by zero" in done.err
    assert "Traceback" not in done.err
    (log,) = (here / "state").rglob("*.log")
    assert f"Hint: The details are in {log}." in done.err
    details = log.read_text()
    assert "cfa fit good --weights embedded" in details
    assert "Traceback" in details
    assert 'in broken\n    raise ZeroDivisionError("division by zero")' in details
    assert not (here / "new.safetensors").exists()


def test_a_log_that_cannot_be_written_is_shown(cfa, here, monkeypatch):
    (here / "state").write_text("a file in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "state"))
    monkeypatch.setattr("cfa_cli.bundle.load_bundle", None)
    done = cfa("info")
    assert done.code == 70
    assert "Traceback" in done.err
    assert "The details are in the lines above." in done.err


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.EACCES, "Close the program"), (errno.EROFS, "--out"), (errno.ENOSPC, "Make room"), (errno.EIO, "cfa.log")],
)
def test_what_the_system_refuses_is_no_bug(cfa, here, monkeypatch, number, hint):
    """As a spreadsheet on Windows that holds a file open, or a disk that fails, wherever it happens."""

    def refused(*arguments, **options):
        raise OSError(number, os.strerror(number), str(here / "table.csv"))

    monkeypatch.setattr("cfa_cli.engine.fit.set_thresholds", refused)
    done = cfa("fit", "good", *QUICK, "--out", "new.safetensors")
    assert_refused(done, 3, f"table.csv: {os.strerror(number)}.", hint)


def test_ctrl_c_anywhere(cfa, here, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    for place in ("backbone.load_weights", "fit.train_descriptor", "fit.set_thresholds"):
        with monkeypatch.context() as patch:
            patch.setattr(f"cfa_cli.engine.{place}", interrupted)
            done = cfa("fit", "good", *QUICK, "--out", "new.safetensors")
        assert (done.code, done.out) == (130, "")
        assert done.err.splitlines()[-1] == "Error: Interrupted."
        assert not (here / "new.safetensors").exists()


def test_main_exits_with_the_code(here, monkeypatch):
    monkeypatch.chdir(here)
    with pytest.raises(SystemExit) as caught:
        __main__.main(["info", "none.safetensors"])
    assert caught.value.code == 4
    assert load_bundle("cfa-model.safetensors").grid == (8, 8)
