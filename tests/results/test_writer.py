import csv
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfa_cli.errors import InputError
from cfa_cli.geometry import resize_map
from cfa_cli.results.scores import read_run
from cfa_cli.results.writer import KINDS, ResultWriter
from tests.results.runs import make_bundle, make_failure, make_prediction

ALL = frozenset(KINDS)
COLUMNS = ["path", "score", "normalized", "threshold", "label", "milliseconds", "error"]


def write(out, predictions, save=frozenset(), **options):
    with ResultWriter(out, save, options.pop("bundle", make_bundle()), **options) as writer:
        for prediction in predictions:
            writer.write(prediction)


def read_csv(out):
    with (out / "scores.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def files_below(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_files_mirror_the_input_and_rows_keep_its_order(tmp_path):
    source = tmp_path / "parts"
    large = make_prediction(source / "line 1" / "a.jpg", 2.0, "line 1/a.jpg", size=(1500, 1500))
    predictions = [large, make_failure(source / "b.png"), make_prediction(source / "c.png", 1.0)]
    write(tmp_path / "maps", predictions, ALL, workers=2)
    assert files_below(tmp_path / "maps") == [
        *("heatmaps/c.png", "heatmaps/line 1/a.png", "maps/c.tiff", "maps/line 1/a.tiff", "masks/c.png"),
        *("masks/line 1/a.png", "overlays/c.png", "overlays/line 1/a.png", "report/c.jpg", "report/c.png"),
        *("report/line 1/a.jpg", "report/line 1/a.png", "run.jsonl", "scores.csv"),
    ]
    with (tmp_path / "maps" / "scores.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        COLUMNS,
        [str(source / "line 1" / "a.jpg"), "2", "0.571428571", "1.5", "anomalous", "12.346", ""],
        [str(source / "b.png"), "", "", "1.5", "", "", "it is damaged."],
        [str(source / "c.png"), "1", "0.4", "1.5", "good", "12.346", ""],
    ]


def test_pictures_and_maps_are_at_the_sources_size(tmp_path):
    shown = make_prediction(tmp_path / "a.bmp", 2.0, size=(50, 70))
    bundle = make_bundle()
    write(tmp_path / "out", [shown], ALL, bundle=bundle)
    expected = resize_map(shown.map, bundle.geometry, (50, 70))
    with Image.open(tmp_path / "out" / "maps" / "a.tiff") as tiff:
        assert tiff.mode == "F"  # float32
        assert tiff.info["compression"] == "raw"
        np.testing.assert_array_equal(np.asarray(tiff), expected)
    with Image.open(tmp_path / "out" / "masks" / "a.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), np.where(expected > 1.0, 255, 0))
    for folder in ("overlays", "heatmaps"):
        with Image.open(tmp_path / "out" / folder / "a.png") as picture:
            assert (picture.mode, picture.size) == ("RGB", (70, 50))
            red, _, blue = np.asarray(picture)[15, 20]
            assert red > blue + 50  # the spot is yellow, in RGB


def test_images_that_differ_in_suffix_or_case_alone_have_files_of_their_own(tmp_path):
    names = ["a.jpg", "a.png", "A.bmp", "a.png.jpg"]
    write(tmp_path, [make_prediction(tmp_path / "in" / name, 1.0, name) for name in names], frozenset({"map"}))
    assert files_below(tmp_path / "maps") == ["A.bmp.tiff", "a.png.jpg.tiff", "a.png.tiff", "a.tiff"]
    assert [row.name for row in read_run(tmp_path)[1]] == ["a", "a.png", "A.bmp", "a.png.jpg"]


def test_any_file_name_survives_the_table(tmp_path):
    names = [
        'x,"y".png',
        "line\nbreak.png",
        "=cmd|' /C calc'!A0.png",
        "@a.png",
        "ü 部品.png",
        "\udcff.png",
        "plain.png",
    ]
    write(tmp_path / "out", [make_prediction(Path(name), 1.0, "x/" + name) for name in names])
    paths = [row["path"] for row in read_csv(tmp_path / "out")]
    # A spreadsheet runs what starts with = or @; with ./ before it, it is the same path and no formula.
    assert paths == [f"./{name}" if name[0] in "=@" else name for name in names]
    assert [str(row.path) for row in read_run(tmp_path / "out")[1]] == names


def test_every_float32_comes_back_from_the_table(tmp_path):
    bits = np.random.default_rng(0).integers(0x33000000, 0x4B000000, 300, dtype=np.uint32)
    scores = bits.view(np.float32)
    write(
        tmp_path, [replace(make_prediction(tmp_path / f"{i}.png", 1.0), score=float(s)) for i, s in enumerate(scores)]
    )
    assert [np.float32(row["score"]) for row in read_csv(tmp_path)] == scores.tolist()


def test_results_are_not_overwritten_unless_asked(tmp_path):
    predictions = [make_prediction(tmp_path / "in" / name, 1.0) for name in ("a.png", "b.tif")]
    write(tmp_path, predictions, ALL)
    (tmp_path / "maps" / "mine.txt").write_text("kept")
    before = (tmp_path / "scores.csv").read_bytes()
    with pytest.raises(InputError) as caught:
        write(tmp_path, predictions[:1])
    assert "--resume" in caught.value.hint
    assert "--force" in caught.value.hint
    assert (tmp_path / "scores.csv").read_bytes() == before
    write(tmp_path, predictions[:1], frozenset({"mask"}), force=True)
    assert files_below(tmp_path) == [
        *("maps/mine.txt", "masks/a.png", "report/a.jpg", "report/a.png", "run.jsonl", "scores.csv"),
    ]
    assert len(read_csv(tmp_path)) == 1


def test_a_run_is_taken_up_after_any_cut(tmp_path):
    names = ["a.png", "b,c.png", "line\nbreak.png", "d.png"]
    predictions = [make_prediction(tmp_path / name, 1.0 + i) for i, name in enumerate(names)]
    write(tmp_path / "whole", predictions)
    scores, journal = ((tmp_path / "whole" / name).read_bytes() for name in ("scores.csv", "run.jsonl"))
    lines = journal.splitlines(keepends=True)
    _, rows = read_run(tmp_path / "whole")
    assert len(rows) == 4
    ends = [len(",".join(COLUMNS)) + 1]
    for i in range(4):
        ends.append(int(lines[i + 1].split(b'"end": ')[1].rstrip(b"}\n")))
    # A kill comes while a line of the journal is written (its row is not there yet), or while a row is.
    cuts = [(sum(map(len, lines[: i + 1])) + extra, ends[i]) for i in range(4) for extra in range(len(lines[i + 1]))]
    cuts += [(sum(map(len, lines[: i + 2])), cut) for i in range(4) for cut in range(ends[i], ends[i + 1] + 1)]
    out = tmp_path / "cut"
    out.mkdir()
    for journal_cut, scores_cut in cuts[::7] + cuts[-1:]:
        (out / "run.jsonl").write_bytes(journal[:journal_cut])
        (out / "scores.csv").write_bytes(scores[:scores_cut])
        with ResultWriter(out, frozenset(), make_bundle(), resume=True) as writer:
            left = [p for p in predictions if not writer.is_done(p.source)]
            assert len(left) == 4 - sum(end <= scores_cut for end in ends[1:])
            for prediction in left:
                writer.write(prediction)
        assert (out / "scores.csv").read_bytes() == scores
        assert (out / "run.jsonl").read_bytes() == journal


def test_a_run_killed_before_its_first_row_is_taken_up(tmp_path):
    write(tmp_path, [])
    (tmp_path / "scores.csv").unlink()
    write(tmp_path, [make_prediction(tmp_path / "a.png", 1.0)], resume=True)
    assert len(read_csv(tmp_path)) == 1


def test_resume_without_an_earlier_run_starts_one(tmp_path):
    write(tmp_path / "new", [make_prediction(tmp_path / "a.png", 1.0)], resume=True)
    assert len(read_csv(tmp_path / "new")) == 1


def test_resume_knows_images_by_their_path_wherever_it_is_called_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = Path("a.png")
    write(tmp_path / "out", [make_prediction(here, 1.0)])
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    with ResultWriter(tmp_path / "out", frozenset(), make_bundle(), resume=True) as writer:
        assert writer.is_done(make_prediction(Path("../a.png"), 1.0).source)
        assert not writer.is_done(make_prediction(here, 1.0).source)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"bundle": make_bundle(threshold=9.0)}, "model"),
        ({"save": frozenset({"map", "mask"})}, "save: none, now map,mask"),
    ],
)
def test_a_run_of_other_settings_is_not_taken_up(tmp_path, options, what):
    write(tmp_path, [make_prediction(tmp_path / "a.png", 1.0)])
    before = (tmp_path / "scores.csv").read_bytes()
    with pytest.raises(InputError, match=what):
        write(tmp_path, [], resume=True, **options)
    assert (tmp_path / "scores.csv").read_bytes() == before


@pytest.mark.parametrize("damage", ["edited", "no journal", "no JSON", "other JSON", "empty"])
def test_a_run_that_was_tampered_with_is_not_taken_up(tmp_path, damage):
    write(tmp_path, [make_prediction(tmp_path / f"{name}.png", 1.0) for name in "abc"])
    scores, journal = tmp_path / "scores.csv", tmp_path / "run.jsonl"
    if damage == "edited":  # sorted, in a spreadsheet
        header, *rows = scores.read_text().splitlines(keepends=True)
        scores.write_text("".join([header, *reversed(rows)]))
    elif damage == "no journal":
        journal.unlink()
    else:
        journal.write_text({"no JSON": "nothing\n", "other JSON": "[1]\n{}\n", "empty": ""}[damage])
    before = scores.read_bytes()
    with pytest.raises(InputError) as caught:
        write(tmp_path, [], resume=True)
    assert "--force" in caught.value.hint
    assert scores.read_bytes() == before
    write(tmp_path, [], force=True)
    assert read_csv(tmp_path) == []


def test_resume_clears_what_a_kill_left_and_nothing_else(tmp_path):
    write(tmp_path, [make_prediction(tmp_path / "a.png", 1.0)], frozenset({"overlay"}))
    left, hidden = tmp_path / "overlays" / ".b-x1y2_z3w.png", tmp_path / "overlays" / ".mine.png"
    left.touch()
    hidden.touch()
    write(tmp_path, [], frozenset({"overlay"}), resume=True)
    assert not left.exists()
    assert hidden.exists()


def test_an_exception_keeps_what_was_computed(tmp_path):
    def interrupted():
        yield from (make_prediction(tmp_path / name, 1.0) for name in ("a.png", "b.png", "c.png"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, interrupted(), ALL)
    assert len(read_csv(tmp_path)) == 3


def test_no_row_follows_one_that_could_not_be_written(tmp_path):
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "b").touch()  # a file where a folder is needed
    names = ["a.png", "b/c.png", *(f"{i}.png" for i in range(20))]
    with pytest.raises(InputError, match="Cannot write"):
        write(tmp_path, [make_prediction(tmp_path / name, 1.0, name) for name in names], frozenset({"overlay"}))
    assert [row["path"] for row in read_csv(tmp_path)] == [str(tmp_path / "a.png")]


def test_an_unusable_place_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"):
        ResultWriter(tmp_path / "file", ALL, make_bundle())


def test_few_images_are_held_at_once(tmp_path):
    alive, most = [], 0

    def stream():
        nonlocal most
        for index in range(40):
            prediction = make_prediction(tmp_path / f"{index}.png", 1.0, size=(300, 300))
            alive.append(weakref.ref(prediction.image))
            most = max(most, sum(image() is not None for image in alive))
            yield prediction
            del prediction

    write(tmp_path / "out", stream(), ALL, workers=2)
    assert most <= 2 * 2 + 2  # under way, the next one, and the one in the loop's variable
