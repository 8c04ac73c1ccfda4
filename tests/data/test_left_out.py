"""Nothing is left out in silence, and what cfa wrote is never its input."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from threading import Event

import pytest

from cfa_cli import predict
from cfa_cli.data.inputs import find_good_images, find_images, find_sources
from cfa_cli.engine.predict_options import PredictOptions
from cfa_cli.engine.watch import watch
from cfa_cli.errors import InputError
from cfa_cli.notes import LeftOut
from cfa_cli.records import RESULT_FOLDERS
from cfa_cli.results.pictures import KINDS, REPORT_FOLDER
from cfa_cli.results.samples import SAMPLES_FOLDER
from tests.conftest import draw_part, write_part


def test_formats_are_counted_in_one_sentence(tmp_path: Path) -> None:
    for name in [
        "1.png",
        *(f"{i}.HEIC" for i in range(10)),
        *(f"sub/{i}.gif" for i in range(3)),
        "Thumbs.db",
        ".x.jp2",
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    left_out = LeftOut()
    assert len(find_images(tmp_path, left_out)) == 1
    assert list(left_out.sentences()) == ["13 files left out, of formats that cfa does not read: 10 x .heic, 3 x .gif."]
    assert left_out.document() == {"formats": {".heic": 10, ".gif": 3}, "results": []}
    assert list(LeftOut().sentences()) == []
    again = LeftOut()
    find_sources([str(tmp_path), str(tmp_path / "*")], left_out=again)
    assert again.formats[".heic"] == 10


def test_the_folders_are_those_that_predict_and_benchmark_write() -> None:
    assert set(RESULT_FOLDERS) == {folder for folder, _ in KINDS.values()} | {REPORT_FOLDER, SAMPLES_FOLDER}


WRITTEN = sorted({*RESULT_FOLDERS} - {SAMPLES_FOLDER})  # by predict


@pytest.fixture
def photos(cfa, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # type: ignore[no-untyped-def]
    """Four photographs, and beside them the results of a run over them; the working folder."""
    folder = tmp_path / "photos"
    for number in range(4):
        write_part(folder / f"{number}.png", number)
    monkeypatch.chdir(folder)
    outcome = cfa("predict", ".", "-m", model, "--save", "overlay,map,mask,heatmap")
    assert outcome.code == 0, outcome.err
    assert len(list(folder.rglob("*.png"))) > 10
    return folder


def test_predicting_twice_gives_the_same_rows(cfa, photos: Path, model: Path) -> None:  # type: ignore[no-untyped-def]
    first = [row["path"] for row in csv.DictReader((photos / "maps/scores.csv").open())]
    assert sorted(first) == ["0.png", "1.png", "2.png", "3.png"]
    for inputs in (["."], ["*.png", "*/*/*.png"], ["**/*.png"], ["**"]):
        outcome = cfa("predict", *inputs, "-m", model, "--force")
        assert outcome.code == 0, outcome.err
        assert sorted(row["path"] for row in csv.DictReader((photos / "maps/scores.csv").open())) == sorted(first)


def test_what_cfa_wrote_is_said(photos: Path) -> None:
    left_out = LeftOut()
    assert len(find_good_images(Path(), left_out)) == 4
    assert left_out.formats == {}
    assert left_out.results == [f"maps/{name}" for name in WRITTEN]
    assert next(left_out.sentences()) == (
        "Left out, because cfa wrote it: maps/heatmaps, maps/maps, maps/masks and 2 more."
    )
    named = LeftOut()
    assert [s.name for s in find_sources(["0.png", "maps/overlays/0.png"], left_out=named)] == ["0.png"]
    assert named.results == ["maps/overlays/0.png"]
    for given in ("maps", "maps/overlays"):
        with pytest.raises(InputError, match=r"There are no images in .* but those that cfa wrote"):
            find_images(Path(given))
    with pytest.raises(InputError, match="All that is given was written by cfa"):
        find_sources(["-"], ["maps/overlays/0.png\n", "maps/overlays/1.png\n"])


def test_a_folder_of_that_name_is_the_users_own_unless_a_run_is_beside_it(photos: Path) -> None:
    (photos / "maps/run.jsonl").write_text('{"some": "thing else"}\n')
    assert len(find_images(photos)) > 4
    for damaged in ("[" * 100_000, '"text"', "5", ""):
        (photos / "maps/run.jsonl").write_text(damaged)
        assert len(find_images(photos)) > 4
    shutil.rmtree(photos / "maps")
    write_part(photos / "masks/1.png", 1)
    assert len(find_images(photos)) == 5
    benchmark = {"version": 2, "dataset": "x", "averages": {}, "runs": []}
    (photos / "results.json").write_text(json.dumps(benchmark, indent=1))
    assert len(find_images(photos)) == 4


def test_fit_says_it_and_trains_on_the_photographs_alone(cfa, photos: Path) -> None:  # type: ignore[no-untyped-def]
    (photos / "a.heic").touch()
    outcome = cfa("fit", ".", "--weights", "embedded", "--size", 64, "--epochs", 1, "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["train_images"] + document["holdout_images"] == 4
    assert document["left_out"]["formats"] == {".heic": 1}
    assert "maps/overlays" in document["left_out"]["results"]
    assert "1 file left out, of formats that cfa does not read: 1 x .heic." in outcome.err


def test_files_that_vanish_and_names_that_are_no_text(tmp_path: Path, good_dir: Path) -> None:
    from cfa_cli import FitConfig, fit

    folder = tmp_path / "good"
    shutil.copytree(good_dir, folder)
    gone, moved = sorted(folder.glob("*.png"))[:2]
    shutil.copy(gone, os.path.join(os.fsencode(folder), b"\xff\r\n.png"))  # noqa: PTH118  (pathlib takes no bytes)
    paths = find_images(folder)
    gone.unlink()

    def on_progress(step: object) -> None:
        if getattr(step, "phase", "") == "training":
            moved.unlink(missing_ok=True)

    result = fit(paths, FitConfig(weights="embedded", size=(64, 64), epochs=1), progress=on_progress)
    assert [Path(path).name for path, _ in result.skipped] == [gone.name]
    assert result.train_images + result.holdout_images == len(paths) - 1
    assert not moved.exists()


def test_predict_says_what_it_left_out(cfa, photos: Path, model: Path) -> None:  # type: ignore[no-untyped-def]
    """The terminal, JSON and the report, for folders, standard input and from Python."""
    (photos / "a.HEIC").touch()
    (photos / "b.gif").touch()
    formats = "2 files left out, of formats that cfa does not read: 1 x .gif, 1 x .heic."
    results = "Left out, because cfa wrote it: maps/heatmaps, maps/maps, maps/masks and 2 more."
    outcome = cfa("predict", ".", "-m", model, "--force", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert document["left_out"] == {
        "formats": {".heic": 1, ".gif": 1},
        "results": [f"maps/{name}" for name in WRITTEN],
    }
    assert document["images"] == 4
    report = (photos / "maps/report.html").read_text()
    for sentence in (formats, results):
        assert outcome.err.count(f"Warning: {sentence}") == 1
        assert sentence in report
    for lines, images in (([".\n"], 4), (["0.png\n", "maps/overlays/0.png\n"], 1)):
        with predict(model, "-", stdin=lines) as run:
            assert len(list(run)) == images
            assert run.summary.left_out.results
            assert any("because cfa wrote it: maps/" in warning for warning in run.warnings)
    with predict(model, [Path(), draw_part(0)]) as run:
        assert len(list(run)) == 5
        assert run.summary.document()["left_out"] == document["left_out"]


def test_watch_passes_by_what_cfa_wrote_and_says_so(photos: Path, model: Path) -> None:
    (photos / "a.heic").touch()
    stop = Event()
    with watch(model, photos, stop, PredictOptions(out=photos / "second")) as run:
        names = []
        for prediction in run:
            names.append(prediction.source.name)
            if len(names) == 4:
                stop.set()
    assert sorted(names) == [f"{number}.png" for number in range(4)]
    left_out = run.summary.left_out
    assert left_out.formats == {".heic": 1}
    assert sorted(left_out.results) == [str(photos / "maps" / name) for name in WRITTEN]
    for folder in (photos / "maps/overlays", photos / "second/report"):
        with pytest.raises(InputError, match="holds what cfa wrote"):
            watch(model, folder, stop, PredictOptions())
