"""The benchmark: what it measures against public libraries, taking up where it stopped, and failures."""

from __future__ import annotations

import csv
import json
import multiprocessing
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cfa_cli.bundle import load_bundle
from cfa_cli.config import FitConfig
from cfa_cli.data.datasets import open_dataset
from cfa_cli.engine.benchmark import benchmark
from cfa_cli.engine.predict import predict
from cfa_cli.errors import InputError, UsageError, WeightsError
from cfa_cli.results.tables import remarks
from tests.engine.trees import make_tree

CONFIG = FitConfig(weights="embedded", size=(64, 64), epochs=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two categories, two seeds, with models and maps; the tree, the folder of results, and the results."""
    folder = tmp_path_factory.mktemp("benchmark")
    root, out = make_tree(folder / "tree", ["bolt", "nut"]), folder / "out"
    steps = []
    results = benchmark(
        open_dataset(str(root)),
        CONFIG,
        out=out,
        seeds=[3, 4],
        save_models=True,
        save_maps=True,
        command="cfa benchmark x",
        progress=steps.append,
    )
    assert [(s.done, s.total) for s in steps if s.step is None] == [(n, 4) for n in range(5)]
    assert {s.step.phase for s in steps if s.step} >= {"reading", "training", "testing"}
    return root, out, results


def test_the_figures_are_those_of_the_saved_model_and_maps(finished):
    root, out, results = finished
    (run,) = [r for r in results.evaluations if (r.category, r.seed) == ("nut", 4)]
    bundle = load_bundle(out / "models/resnet18-seed4/nut.safetensors")
    assert (bundle.config.seed, bundle.calibration.threshold) == (4, run.threshold)
    scores, labels, pixels, truth = [], [], [], []
    for path in sorted((root / "nut/test").rglob("*.png")):
        (prediction,) = predict(bundle, path)
        saved = cv2.imread(str(out / f"maps/resnet18-seed4/nut/test/{path.parent.name}/{path.stem}.tiff"), -1)
        assert (saved.dtype, saved.shape) == (np.float32, (48, 56))
        np.testing.assert_allclose(saved, prediction.map, rtol=1e-3)
        mask = cv2.imread(str(root / f"nut/ground_truth/{path.parent.name}/{path.stem}_mask.png"), 0)
        scores.append(prediction.score)
        labels.append(path.parent.name != "good")
        pixels.append(saved.ravel())
        truth.append(np.zeros(saved.size) if mask is None else mask.ravel() > 0)
    assert run.image_auroc == pytest.approx(roc_auc_score(labels, scores))
    assert run.pixel_auroc == pytest.approx(roc_auc_score(np.concatenate(truth), np.concatenate(pixels)), abs=1e-12)
    flagged, bad = np.array(scores) > run.threshold, np.array(labels)
    assert (run.fpr, run.recall) == pytest.approx((flagged[~bad].mean(), flagged[bad].mean()))
    assert (run.train_images, run.holdout_images, run.test_good, run.test_anomalous) == (6, 2, 3, 3)
    assert run.fit_seconds > 0 < run.milliseconds
    assert run.peak_memory_mb is None or 50 < run.peak_memory_mb < 20_000


def test_what_is_written(finished):
    _, out, results = finished
    document = json.loads((out / "results.json").read_text())
    assert document["version"] == 2
    assert document["failures"] == []
    assert [tuple(run["input_size"]) for run in document["runs"]] == [(64, 64)] * 4
    by_seed = [np.mean([r.aupro for r in results.evaluations if r.seed == seed]) for seed in (3, 4)]
    expected = {"mean": pytest.approx(np.mean(by_seed)), "spread": pytest.approx(np.std(by_seed, ddof=1))}
    assert document["averages"]["resnet18"]["aupro"] == expected
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["category"], int(r["seed"]), float(r["aupro"])) for r in rows] == [
        (r.category, r.seed, r.aupro) for r in results.evaluations
    ]
    page = (out / "results.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 * 3  # of the first seed, the best, the median and the worst
    assert len(list((out / "samples").rglob("*.jpg"))) == 4 * 3
    text = (out / "results.md").read_text()
    assert f"{np.mean(by_seed):.3f}±{np.std(by_seed, ddof=1):.3f}" in text
    assert "    cfa benchmark x\n" in text


def test_what_is_finished_is_not_run_again(finished, tmp_path, monkeypatch):
    root, out, results = finished
    (tmp_path / "results.json").write_bytes((out / "results.json").read_bytes())
    (tmp_path / "tree").symlink_to(root)

    def refuse(*_, **__):
        raise RuntimeError("it ran again")

    monkeypatch.setattr("cfa_cli.engine.evaluate.fit", refuse)
    again = benchmark(open_dataset(str(root)), CONFIG, out=tmp_path, seeds=[3, 4])
    assert (again.evaluations, again.failures) == (results.evaluations, ())
    some = benchmark(open_dataset(str(root), None, ["bolt"]), CONFIG, out=tmp_path, seeds=[4])
    assert some.evaluations == results.evaluations  # what others asked for stays
    lacking = benchmark(open_dataset(str(root), None, ["bolt"]), CONFIG, out=tmp_path, seeds=[4], save_models=True)
    assert "it ran again" in lacking.failures[0].error  # its model was not kept
    shutil.copytree(out / "maps", tmp_path / "maps")
    (tmp_path / "maps/resnet18-seed4/nut/test/spot/001.tiff").unlink()
    lacking = benchmark(open_dataset(str(root)), CONFIG, out=tmp_path, seeds=[3, 4], save_maps=True)
    assert [(failure.category, failure.seed) for failure in lacking.failures] == [("nut", 4)]
    with pytest.raises(InputError, match=r"epochs 1, not 2"):
        benchmark(open_dataset(str(root)), replace(CONFIG, epochs=2), out=tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(InputError, match="not the results of a benchmark"):
        benchmark(open_dataset(str(root)), CONFIG, out=tmp_path)


DAMAGES = {
    "no object": "[]",
    "deep nesting": "[" * 100_000 + "]" * 100_000,
    "no text": b"\xff\xfe",
    "a version of words": {"version": "two"},
    "evaluations that are none": {"runs": [1]},
    "a metric of words": {"aupro": "high"},
    "a size that is none": {"input_size": "big"},
    "no category": {"category": None},
    "options of words": {"config": "all"},
    "versions of numbers": {"versions": {"cfa": 1}},
    "infinity": {"threshold": float("inf")},
}


@pytest.mark.parametrize("name", DAMAGES)
def test_results_of_a_stranger_are_checked(finished, tmp_path, name):
    root, out, _ = finished
    damage, text = DAMAGES[name], (out / "results.json").read_text()
    if isinstance(damage, dict):
        document = json.loads(text)
        for key, value in damage.items():
            (document if key in document else document["runs"][1])[key] = value
        damage = json.dumps(document)
    (tmp_path / "results.json").write_bytes(damage.encode() if isinstance(damage, str) else damage)
    with pytest.raises(InputError, match="not the results of a benchmark, or damaged") as caught:
        benchmark(open_dataset(str(root)), CONFIG, out=tmp_path)
    assert "--force" in str(caught.value.hint)


def test_starting_over_deletes_nothing_outside_its_folder(finished, tmp_path):
    root, out, _ = finished
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "bolt.safetensors").write_text("precious")
    document = json.loads((out / "results.json").read_text())
    for entry in document["runs"]:
        entry |= {"category": str(tmp_path / "precious/bolt"), "backbone": "../../precious"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text(json.dumps(document))
    dataset = open_dataset(str(root), None, ["bolt"])
    benchmark(dataset, CONFIG, out=tmp_path / "out", save_models=True, force=True)
    assert [path.name for path in (tmp_path / "precious").iterdir()] == ["bolt.safetensors"]
    assert (tmp_path / "precious" / "bolt.safetensors").read_text() == "precious"


def test_places_that_cannot_be_written_are_said(finished, tmp_path):
    dataset = open_dataset(str(finished[0]))
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "results.json").mkdir(parents=True)
    for out, message in [
        ("file", "is a file, not a folder"),
        ("file/below", "Cannot write"),
        ("folder", "results.json"),
    ]:
        with pytest.raises(InputError, match=message):
            benchmark(dataset, CONFIG, out=tmp_path / out)


def test_one_benchmark_at_a_time_writes_to_a_folder(finished, tmp_path):
    dataset, messages = open_dataset(str(finished[0]), None, ["bolt"]), []

    def start_another(step):
        if step.step is None and not messages:
            with pytest.raises(InputError, match=f"Another run is writing to {tmp_path}") as caught:
                benchmark(dataset, CONFIG, out=tmp_path, force=True)
            messages.append(caught.value.message)

    results = benchmark(dataset, CONFIG, out=tmp_path, progress=start_another)
    assert len(messages) == len(results.evaluations) == 1
    assert benchmark(dataset, CONFIG, out=tmp_path) == results  # the folder is free again


def test_figures_of_other_versions_are_named_one_by_one(finished, tmp_path):
    root, out, results = finished
    document = json.loads((out / "results.json").read_text())
    document["versions"]["torch"] = "1.0"
    for number, entry in enumerate(document["runs"]):
        entry["versions"] = "cfa 0.0.1, torch 1.0, timm 0.1"
        if number == 2:
            del entry["versions"]  # as earlier versions wrote it: the session's own hold
    (tmp_path / "results.json").write_text(json.dumps(document))
    again = benchmark(open_dataset(str(root)), CONFIG, out=tmp_path, seeds=[3, 4])
    found = [each for each in remarks(again) if "was computed with" in each]
    assert [each.split(" was")[0] for each in found] == [
        f"{each.category} ({each.backbone}, seed {each.seed})" for each in results.evaluations
    ]
    assert "computed with cfa 0.0.1, torch 1.0, timm 0.1, not with cfa" in found[0]
    assert f"torch 1.0, timm {again.versions['timm']}, not with" in found[2]
    with (tmp_path / "results.csv").open(newline="") as file:
        assert [row["versions"] for row in csv.DictReader(file)] == [each.versions for each in again.evaluations]
    assert not any("was computed with" in each for each in remarks(results))


def test_an_interrupted_benchmark_goes_on_where_it_stopped(finished, tmp_path):
    def press_ctrl_c(step):
        if step.done == 1:
            raise KeyboardInterrupt

    dataset = open_dataset(str(finished[0]))
    with pytest.raises(KeyboardInterrupt):
        benchmark(dataset, CONFIG, out=tmp_path, progress=press_ctrl_c)
    steps = []
    results = benchmark(dataset, CONFIG, out=tmp_path, progress=steps.append)
    assert [s.done for s in steps if s.step is None] == [1, 2]
    assert [run.category for run in results.evaluations] == ["bolt", "nut"]


def test_other_data_is_run_again(finished, tmp_path):
    _, out, results = finished
    root = make_tree(tmp_path / "tree", ["bolt", "nut"])
    (tmp_path / "results.json").write_bytes((out / "results.json").read_bytes())
    (root / "nut/test/good/002.png").unlink()
    again = benchmark(open_dataset(str(root)), CONFIG, out=tmp_path, seeds=[3])
    assert {(r.category, r.seed, r.test_good) for r in again.evaluations} == {
        ("bolt", 3, 3),
        ("bolt", 4, 3),
        ("nut", 3, 2),
    }
    assert [r for r in again.evaluations if r.category == "bolt"] == [
        r for r in results.evaluations if r.category == "bolt"
    ]


def test_a_failed_category_does_not_lose_the_others(tmp_path):
    root = make_tree(tmp_path / "tree", ["bolt", "nut", "pin"])
    cv2.imwrite(str(root / "bolt/ground_truth/spot/001_mask.png"), 255 * np.eye(56, 48, dtype=np.uint8))
    (root / "nut/test/good/001.png").write_bytes(b"no image")
    notes: list[str] = []
    results = benchmark(open_dataset(str(root)), CONFIG, out=tmp_path / "out", notify=notes.append)
    assert [run.category for run in results.evaluations] == ["pin"]
    assert [(f.category, f.traceback) for f in results.failures] == [("bolt", None), ("nut", None)]
    assert "does not fit its image" in results.failures[0].error
    assert "nut/test/good/001.png" in results.failures[1].error
    assert len(notes) == 2
    assert "bolt (resnet18, seed 0) failed" in (tmp_path / "out/results.md").read_text()


def test_processes_give_the_same_figures_and_one_that_dies_is_a_failure(finished, tmp_path):
    root, _, results = finished
    killed = []

    def kill_the_first(step):
        if step.step and not killed:
            killed.append(step.current)
            for process in multiprocessing.active_children():
                process.kill()

    dataset = open_dataset(str(root), None, ["bolt"])
    broken = benchmark(dataset, CONFIG, out=tmp_path, seeds=[3], jobs=2, progress=kill_the_first)
    assert (broken.evaluations, [f.category for f in broken.failures]) == ((), ["bolt"])
    assert "ended from outside" in broken.failures[0].error
    whole = benchmark(open_dataset(str(root)), CONFIG, out=tmp_path, seeds=[3], jobs=2)
    assert whole.failures == ()
    assert [run.category for run in whole.evaluations] == ["bolt", "nut"]  # whichever ends first
    for ours in whole.evaluations:
        (theirs,) = [r for r in results.evaluations if (r.category, r.seed) == (ours.category, 3)]
        assert ours.pixel_auroc == pytest.approx(theirs.pixel_auroc, abs=1e-3)
        assert ours.threshold == pytest.approx(theirs.threshold, rel=1e-2)


def test_what_would_fail_in_all_runs_is_said_before_the_first(finished, tmp_path):
    dataset = open_dataset(str(finished[0]))
    with pytest.raises(WeightsError):
        benchmark(dataset, replace(CONFIG, weights=str(tmp_path / "none.pth")), out=tmp_path)
    with pytest.raises(WeightsError):
        benchmark(dataset, CONFIG, out=tmp_path, backbones=["resnet18", "resnet34"])  # embedded: resnet18 alone
    with pytest.raises(UsageError, match="--jobs 0"):
        benchmark(dataset, CONFIG, out=tmp_path, jobs=0)
    assert list(tmp_path.iterdir()) == []


def test_only_good_or_only_bad_images_give_what_can_be_said(tmp_path):
    root = make_tree(tmp_path / "tree", ["bolt", "nut"])
    shutil.rmtree(root / "bolt/test/good")
    shutil.rmtree(root / "nut/test/spot")
    shutil.rmtree(root / "nut/ground_truth")
    results = benchmark(open_dataset(str(root)), CONFIG, out=tmp_path / "out")
    bad, good = results.evaluations
    assert (bad.image_auroc, bad.image_f1max, bad.fpr, bad.f1) == (None, None, None, None)
    assert 0 <= bad.recall <= 1
    assert bad.pixel_auroc is not None  # the pixels around the defects are good
    assert (good.image_auroc, good.image_f1max, good.recall, good.f1, good.pixel_auroc, good.aupro) == (None,) * 6
    assert 0 <= good.fpr <= 1
    text = (tmp_path / "out/results.md").read_text()
    assert "bolt: There are no good test images: image AUROC, F1 and false-positive rate are left blank." in text
    assert "nut: There are no anomalous test images: image AUROC, F1 and recall are left blank." in text


def test_a_mask_of_another_shape_is_told_before_the_fit(tmp_path, monkeypatch):
    root = make_tree(tmp_path / "tree", ["bolt"])
    cv2.imwrite(str(root / "bolt/ground_truth/spot/001_mask.png"), 255 * np.eye(56, 48, dtype=np.uint8))
    monkeypatch.setattr("cfa_cli.engine.evaluate.fit", lambda *_, **__: pytest.fail("it fitted"))
    results = benchmark(open_dataset(str(root)), CONFIG, out=tmp_path / "out")
    assert "001_mask.png (48 x 56 px) does not fit its image (56 x 48 px)" in results.failures[0].error
