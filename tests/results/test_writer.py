import csv
import errno
import io
import json
import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfa_cli import load_bundle
from cfa_cli.errors import InputError
from cfa_cli.geometry import resize_map
from cfa_cli.records import Source
from cfa_cli.results.pictures import KINDS, Pictures
from cfa_cli.results.scores import read_run
from cfa_cli.results.writer import ResultWriter
from tests.results.runs import make_bundle, make_failure, make_prediction

ALL = frozenset(KINDS)
GOLDEN = Path(__file__).parents[1] / "golden"
COLUMNS = ["path", "score", "normalized", "threshold", "label", "milliseconds", "error"]
COLUMNS += ["misfit", "model", "near_threshold"]


def write(out, predictions, save=frozenset(), **options):
    with ResultWriter(out, options.pop("bundle", make_bundle()), save, **options) as writer:
        for prediction in predictions:
            writer.write(prediction)


def read_csv(out):
    with (out / "scores.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.field_size_limit(1_000_000)
        return list(csv.DictReader(file))


def files_below(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_files_mirror_the_input_and_rows_keep_its_order(tmp_path):
    source = tmp_path / "parts"
    large = make_prediction(source / "line 1" / "a.jpg", 2.0, "line 1/a.jpg", size=(1500, 1500))
    predictions = [
        replace(large, near_threshold=False),
        make_failure(source / "b.png"),
        replace(make_prediction(source / "c.png", 1.0), near_threshold=True),
    ]
    write(tmp_path / "maps", predictions, ALL, workers=2)
    assert files_below(tmp_path / "maps") == [
        *("heatmaps/c.png", "heatmaps/line 1/a.png", "maps/c.tiff", "maps/line 1/a.tiff", "masks/c.png"),
        *("masks/line 1/a.png", "overlays/c.png", "overlays/line 1/a.png", "regions.csv", "report.html"),
        *("report/c.jpg", "report/c.mask.png", "report/c.png", "report/line 1/a.jpg", "report/line 1/a.mask.png"),
        *("report/line 1/a.png", "run.jsonl", "scores.csv"),
    ]
    with (tmp_path / "maps" / "scores.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        COLUMNS,
        [str(source / "line 1" / "a.jpg"), "2", "0.571428571", "1.5", "anomalous", "12.346", "", "", "", "no"],
        [str(source / "b.png"), "", "", "1.5", "", "", "it is damaged.", "", "", ""],
        [str(source / "c.png"), "1", "0.4", "1.5", "good", "12.346", "", "", "", "yes"],
    ]


def test_pictures_and_maps_are_at_the_sources_size(tmp_path):
    shown = make_prediction(tmp_path / "a.bmp", 2.0, size=(50, 70))
    bundle = make_bundle()
    write(tmp_path / "out", [shown], ALL, bundle=bundle)
    expected = resize_map(shown.score_map, bundle.geometry, (50, 70))
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


def test_regions_are_listed_in_the_sources_px(tmp_path):
    shown = make_prediction(tmp_path / "=a.png", 2.0, size=(64, 96))  # the spot: rows and columns 8 to 11 of 32
    write(tmp_path / "out", [shown, make_prediction(tmp_path / "good.png", 0.9), make_failure(tmp_path / "b.png")], ALL)
    write(tmp_path / "out", [replace(shown, source=Source(Path("=c.png"), "c.png"))], ALL, resume=True)
    with (tmp_path / "out" / "regions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(tmp_path / "=a.png"), "./=c.png"]
    numbers = {name: float(value) for name, value in rows[0].items() if name != "path"}
    with Image.open(tmp_path / "out" / "masks" / "=a.png") as mask:
        ys, xs = np.nonzero(np.asarray(mask))
    assert (numbers["left"], numbers["top"]) == (xs.min(), ys.min()) == (24, 16)
    assert (numbers["width"], numbers["height"]) == (np.ptp(xs) + 1, np.ptp(ys) + 1) == (12, 8)
    assert numbers["area"] == len(xs)
    assert (numbers["centroid_column"], numbers["centroid_row"]) == (29.5, 19.5)
    assert numbers["peak"] == 2
    assert [len(row.regions) for row in read_run(tmp_path / "out")[1]] == [1, 0, 0, 1]
    write(tmp_path / "out", [], force=True)
    assert len((tmp_path / "out" / "regions.csv").read_bytes().splitlines()) == 1  # the names of its columns


def test_images_that_differ_in_suffix_or_case_alone_have_files_of_their_own(tmp_path):
    names = ["a.jpg", "a.png", "A.bmp", "a.png.jpg"]
    write(tmp_path, [make_prediction(tmp_path / "in" / name, 1.0, name) for name in names], frozenset({"map"}))
    assert files_below(tmp_path / "maps") == ["A.bmp.tiff", "a.png.jpg.tiff", "a.png.tiff", "a.tiff"]
    assert [row.name for row in read_run(tmp_path)[1]] == ["a", "a.png", "A.bmp", "a.png.jpg"]


def test_any_file_name_survives_the_table(tmp_path):
    names = [
        'x,"y".png',
        "line\nbreak.png",
        "carriage\rreturn.png",
        "\rat\r\nonce.png\r",
        "long" * 40_000,
        "=cmd|' /C calc'!A0.png",
        "@a.png",
        "ü 部品.png",
        "\udcff.png",
        "plain.png",
    ]
    write(tmp_path / "out", [make_prediction(Path(name), 1.0, "x/" + name) for name in names])
    paths = [row["path"] for row in read_csv(tmp_path / "out")]
    # A spreadsheet runs what starts with = or @; with ./ before it, it is the same path and no formula.
    assert paths == [f"./{name}" if name[0] in "=@\r" else name for name in names]
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
        *("maps/mine.txt", "masks/a.png", "regions.csv", "report.html", "report/a.jpg", "report/a.mask.png"),
        *("report/a.png", "run.jsonl", "scores.csv"),
    ]
    assert len(read_csv(tmp_path)) == 1


def test_a_run_is_taken_up_after_any_cut(tmp_path):
    names = ["a.png", "b,c.png", "line\nbreak.png", "d.png"]
    predictions = [make_prediction(tmp_path / name, 1.0 + i) for i, name in enumerate(names)]
    write(tmp_path / "whole", predictions)
    names = "scores.csv", "run.jsonl", "regions.csv"
    scores, journal, regions = ((tmp_path / "whole" / name).read_bytes() for name in names)
    assert (
        len(list(csv.reader(io.StringIO(regions.decode(), newline="")))) == 1 + 3
    )  # that of a.png is at the threshold
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
        (out / "regions.csv").write_bytes(regions[: 200 * (scores_cut % 3)])  # whatever it holds
        with ResultWriter(out, make_bundle(), frozenset(), resume=True) as writer:
            left = [p for p in predictions if not writer.is_done(p.source)]
            assert len(left) == 4 - sum(end <= scores_cut for end in ends[1:])
            for prediction in left:
                writer.write(prediction)
        assert (out / "scores.csv").read_bytes() == scores
        assert (out / "run.jsonl").read_bytes() == journal
        assert (out / "regions.csv").read_bytes() == regions


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
    with ResultWriter(tmp_path / "out", make_bundle(), frozenset(), resume=True) as writer:
        assert writer.is_done(make_prediction(Path("../a.png"), 1.0).source)
        assert not writer.is_done(make_prediction(here, 1.0).source)
        writer.write(make_failure(here))
        writer.write(make_prediction(tmp_path / "sub" / "b.png", 1.0))
    # Its relative paths start where the run was started, whatever folder it is taken up from.
    assert [row["path"] for row in read_csv(tmp_path / "out")] == [
        "a.png",
        "sub/a.png",
        str(tmp_path / "sub" / "b.png"),
    ]
    assert read_run(tmp_path / "out")[0]["folder"] == str(tmp_path)
    write(tmp_path / "out", [make_prediction(here, 2.0)], resume=True)
    assert [row["score"] for row in read_csv(tmp_path / "out")] == ["1", "2", "1"]


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


def test_an_image_whose_pictures_cannot_be_written_has_its_score_and_the_error(tmp_path):
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "b").touch()  # a file where a folder is needed
    names = ["a.png", "b/c.png", *(f"{i}.png" for i in range(20))]
    with ResultWriter(tmp_path, make_bundle()) as writer:
        for name in names:
            writer.write(make_prediction(tmp_path / name, 1.0, name))
    assert [path.name for path, _ in writer.unwritten] == ["c.png"]
    rows = read_csv(tmp_path)
    assert [row["path"] for row in rows] == [str(tmp_path / name) for name in names]
    assert {row["score"] for row in rows} == {"1"}
    assert [row["error"] for row in rows if row["error"]] == [writer.unwritten[0][1]]
    assert "Cannot write" in rows[1]["error"]
    (tmp_path / "overlays" / "b").unlink()
    with ResultWriter(tmp_path, make_bundle(), resume=True) as writer:
        for prediction in [make_prediction(tmp_path / name, 1.0, name) for name in names]:
            if not writer.is_done(prediction.source):
                writer.write(prediction)
    assert [(row["path"], row["error"]) for row in read_csv(tmp_path)] == [(str(tmp_path / name), "") for name in names]
    assert (tmp_path / "overlays" / "b" / "c.png").is_file()


def test_a_full_disk_ends_the_run_and_no_row_follows(tmp_path, monkeypatch):
    open_path = Path.open

    def fill(path, *args, **options):
        if "overlays/b" in path.as_posix():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open_path(path, *args, **options)

    monkeypatch.setattr(Path, "open", fill)
    names = ["a.png", "b/c.png", *(f"{i}.png" for i in range(20))]
    with pytest.raises(InputError, match="No space left on device"):
        write(tmp_path, [make_prediction(tmp_path / name, 1.0, name) for name in names], {"overlay"})
    assert [row["path"] for row in read_csv(tmp_path)] == [str(tmp_path / "a.png")]


def scores_is_a_folder(out):
    (out / "scores.csv").mkdir(parents=True)


def journal_is_a_pipe(out):
    out.mkdir()
    os.mkfifo(out / "run.jsonl")


def table_is_a_link(out):
    out.mkdir()
    (out.parent / "precious").write_text("kept")
    (out / "scores.csv").symlink_to(out.parent / "precious")


@pytest.mark.parametrize("make", [Path.touch, scores_is_a_folder, journal_is_a_pipe, table_is_a_link])
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"force": True}])
def test_an_unusable_place_is_an_input_error(tmp_path, make, options):
    make(tmp_path / "out")
    with pytest.raises(InputError, match=r"is a file, not a folder|is not a regular file") as caught:
        ResultWriter(tmp_path / "out", make_bundle(), ALL, **options)
    assert "--out" in caught.value.hint
    assert not (tmp_path / "precious").exists() or (tmp_path / "precious").read_text() == "kept"


@pytest.mark.parametrize("call", ["mkdir", "open", "replace"])
def test_a_place_of_somebody_elses_or_a_table_that_is_open_is_said_and_loses_nothing(tmp_path, monkeypatch, call):
    """Permissions do not bind root, who may run the tests; a spreadsheet on Windows gives the same error."""
    out = tmp_path / "out"
    if call != "mkdir":
        write(out, [make_prediction(tmp_path / "a.png", 1.0)])
        before = (out / "scores.csv").read_bytes()
    original = getattr(Path, call)

    def refuse(path, *arguments, **options):
        if (path == out or "scores" in path.name) and (call != "open" or "ab" in arguments):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, refuse)
        with pytest.raises(InputError, match=r"^Cannot write .*: Permission denied\.$") as caught:
            write(out, [make_prediction(tmp_path / "b.png", 1.0)], resume=True)
    assert "close it" in caught.value.hint
    if call != "mkdir":
        assert (out / "scores.csv").read_bytes() == before
    write(out, [make_prediction(tmp_path / "b.png", 1.0)], resume=True)
    assert [Path(row["path"]).name for row in read_csv(out)][-1] == "b.png"


def test_one_run_at_a_time_writes_to_a_folder(tmp_path):
    with ResultWriter(tmp_path, make_bundle()) as first:
        first.write(make_prediction(tmp_path / "a.png", 1.0))
        for options in ({}, {"resume": True}, {"force": True}):
            with pytest.raises(InputError, match="Another run is writing to") as caught:
                ResultWriter(tmp_path, make_bundle(), **options)
            assert "--out" in caught.value.hint
        first.write(make_prediction(tmp_path / "b.png", 1.0))
    assert len(read_csv(tmp_path)) == 2
    assert not [name for name in files_below(tmp_path) if name.startswith(".")]
    write(tmp_path, [], {"overlay"}, resume=True)  # it is free again
    with pytest.raises(InputError, match="holds the results"):
        write(tmp_path, [])
    write(tmp_path, [], force=True)  # after a refusal, too


def test_what_failed_is_tried_again_in_its_place(tmp_path):
    def state():
        return [(Path(row["path"]).name, row["score"]) for row in read_csv(tmp_path / "out")]

    def again(scores):
        with ResultWriter(tmp_path / "out", make_bundle(), (), resume=True) as writer:
            earlier = [row.path.name for row in writer.earlier]
            for name, score in scores.items():
                path = tmp_path / name
                prediction = make_prediction(path, score) if score else make_failure(path)
                if not writer.is_done(prediction.source):
                    writer.write(prediction)
        return earlier

    names = ["a.png", "b.png", "c.png", "d.png"]
    failing = [make_failure(tmp_path / n) if n in "b.png d.png" else make_prediction(tmp_path / n, 1.0) for n in names]
    write(tmp_path / "out", failing)
    assert again({"b.png": 2.0}) == ["a.png", "c.png"]
    assert state() == [("a.png", "1"), ("b.png", "2"), ("c.png", "1"), ("d.png", "")]
    assert again({"a.png": 9.0, "d.png": None, "e.png": 3.0}) == ["a.png", "b.png", "c.png"]
    assert state() == [("a.png", "1"), ("b.png", "2"), ("c.png", "1"), ("d.png", ""), ("e.png", "3")]
    assert again({"d.png": 4.0}) == ["a.png", "b.png", "c.png", "e.png"]
    assert state() == [("a.png", "1"), ("b.png", "2"), ("c.png", "1"), ("d.png", "4"), ("e.png", "3")]


@pytest.mark.parametrize("killed", ["before", "between"])
def test_a_kill_before_or_while_the_failed_rows_are_replaced_loses_nothing(tmp_path, monkeypatch, killed):
    names, out = ["a.png", "b.png", "c.png"], tmp_path / "out"
    write(out, [make_failure(tmp_path / "a.png"), *(make_prediction(tmp_path / n, 1.0) for n in names[1:])])
    with monkeypatch.context() as patch:
        replace_file = Path.replace

        def dying(path, target):
            if target.name == {"before": "scores.csv", "between": "run.jsonl"}[killed]:
                raise KeyboardInterrupt
            return replace_file(path, target)

        writer = ResultWriter(out, make_bundle(), (), resume=True)
        patch.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt), writer:
            writer.write(make_prediction(tmp_path / "a.png", 2.0))
    assert len(read_csv(out)) == (4 if killed == "before" else 3)
    with ResultWriter(out, make_bundle(), (), resume=True) as writer:
        assert [row.path.name for row in writer.earlier] == names
    assert [(Path(row["path"]).name, row["score"]) for row in read_csv(out)] == [
        *(("a.png", "2"), ("b.png", "1"), ("c.png", "1"))
    ]


@pytest.mark.parametrize("name", ["/{}/precious", "../precious", "x/../../precious", "..\\precious", "C:\\precious"])
def test_force_removes_nothing_outside_of_the_folder(tmp_path, name):
    out, precious = tmp_path / "out", tmp_path / "precious.png"
    write(out, [make_prediction(tmp_path / "a.png", 1.0)], ALL)
    precious.write_text("kept")
    journal = (out / "run.jsonl").read_text().splitlines()
    entry = {**json.loads(journal[1]), "name": name.format(tmp_path)}
    (out / "run.jsonl").write_text(f"{journal[0]}\n{json.dumps(entry)}\n")
    with pytest.raises(InputError, match="damaged"):
        read_run(out)
    write(out, [], force=True)
    assert precious.read_text() == "kept"


def test_force_follows_no_link_out_of_the_folder(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    write(out, [make_prediction(tmp_path / "a.png", 1.0)], ALL)
    (out / "masks").rename(elsewhere)
    (out / "masks").symlink_to(elsewhere)
    write(out, [], force=True)
    assert (elsewhere / "a.png").is_file()
    assert not (out / "overlays" / "a.png").exists()


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (0, {"folder": 1}),
        (0, {"save": "overlay"}),
        (0, {"save": [1]}),
        (0, {"model": None}),
        (0, {"format": "one"}),
        (1, {"path": 5}),
        (1, {"name": None}),
        (1, {"name": ""}),
        (1, {"end": 1e9}),
        (1, {"end": True}),
        (1, {"size": "ab"}),
        (1, {"size": [0, 4]}),
        (1, {"size": [4]}),
        (1, {"regions": 1}),
        (1, {"regions": [[1, 2]]}),
        (1, {"regions": [["x"] * 10]}),
        (1, {"regions": [[1.5] * 10]}),
        (0, "[" * 100_000),
        (1, "[" * 100_000),
        (1, "1" * 100_000),
        (1, '{"end": NaN}'),
        (0, "null"),
    ],
)
def test_a_journal_of_a_strangers_is_an_input_error(tmp_path, line, change):
    write(tmp_path, [make_prediction(tmp_path / "a.png", 1.0)])
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    lines[line] = change if isinstance(change, str) else json.dumps({**json.loads(lines[line]), **change})
    (tmp_path / "run.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"damaged|another version"):
        write(tmp_path, [], resume=True)


@pytest.mark.parametrize("score", ["nan", "inf", "1e999", "one"])
def test_a_table_without_numbers_is_an_input_error(tmp_path, score):
    write(tmp_path, [make_prediction(tmp_path / "a.png", 8.0)])
    table = (tmp_path / "scores.csv").read_text().replace(",8,", f",{score},")
    (tmp_path / "scores.csv").write_text(table)
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    entry = {**json.loads(lines[1]), "end": len(table)}
    (tmp_path / "run.jsonl").write_text(f"{lines[0]}\n{json.dumps(entry)}\n")
    with pytest.raises(InputError, match="damaged"):
        read_run(tmp_path)


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_an_error(tmp_path, score):
    broken = replace(make_prediction(tmp_path / "a.png", 1.0), score=score, normalized=score)
    write(tmp_path, [broken], ALL)
    (row,) = read_csv(tmp_path)
    assert (row["score"], row["normalized"], row["label"]) == ("", "", "")
    assert "not a finite number" in row["error"]


def test_the_normalized_score_never_reaches_1(tmp_path):
    ratios = [1e3, 1e10, 1e12, 1e30]
    scores = [replace(make_prediction(tmp_path / f"{r}.png", 1.0), normalized=r / (r + 1)) for r in ratios]
    write(tmp_path, scores)
    values = [float(row["normalized"]) for row in read_csv(tmp_path)]
    assert values == sorted(set(values))
    assert values[-1] < 1


def test_a_run_of_format_1_is_taken_up(tmp_path):
    bundle = load_bundle(GOLDEN / "format1-default.safetensors")
    shutil.copytree(GOLDEN / "run-format1", tmp_path / "out")
    with ResultWriter(tmp_path / "out", bundle, (), resume=True) as writer:
        assert [row.path.name for row in writer.earlier] == ["000.jpg", "001.jpg", "002.jpg"]
        assert not writer.is_done(Source(Path("/photos/photos/broken.png"), "broken.png"))
    with pytest.raises(InputError, match="another model"):
        write(tmp_path / "out", [], resume=True, bundle=load_bundle(GOLDEN / "format1-paper.safetensors"))


@pytest.mark.parametrize("columns", [7, 9])
def test_a_table_with_fewer_columns_is_taken_up(tmp_path, columns):
    """Earlier versions wrote neither what follows the error nor, later, what follows the model."""
    write(tmp_path, [make_prediction(Path("a.png"), 1.0)])
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    lines = [",".join(line.split(",")[:columns]) for line in lines]
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    settings, *entries = (tmp_path / "run.jsonl").read_text().splitlines()
    entry = json.loads(entries[0]) | {"end": (tmp_path / "scores.csv").stat().st_size}
    (tmp_path / "run.jsonl").write_text(f"{settings}\n{json.dumps(entry)}\n")
    later = replace(make_prediction(Path("b.png"), 2.0), near_threshold=True)
    write(tmp_path, [later], resume=True)
    assert [(row["path"], row["near_threshold"]) for row in read_csv(tmp_path)] == [("a.png", ""), ("b.png", "yes")]
    assert [row.near_threshold for row in read_run(tmp_path)[1]] == [None, True]


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


def test_large_images_are_written_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("cfa_cli.results.pictures.MAX_BYTES_PENDING", 400_000)
    under_way, most = set(), 0
    write_files = Pictures._write_files

    def watched(writer, prediction, name):
        nonlocal most
        under_way.add(name)
        most = max(most, len(under_way))
        regions = write_files(writer, prediction, name)
        under_way.discard(name)
        return regions

    monkeypatch.setattr(Pictures, "_write_files", watched)
    predictions = [make_prediction(tmp_path / f"{index}.png", 1.0, size=(300, 300)) for index in range(6)]  # 270,000
    write(tmp_path / "out", predictions, ALL, workers=4)
    assert most == 1
    assert len(read_csv(tmp_path / "out")) == 6


def test_pictures_that_cannot_be_encoded_or_drawn_are_an_error_of_their_row(tmp_path, monkeypatch):
    thin = make_prediction(tmp_path / "thin.tif", 1.0, size=(70_000, 2))  # JPEG has 65,500 px a side at most, PNG more
    large = make_prediction(tmp_path / "large.png", 1.0, size=(50, 50))

    def draw(image, *_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("cfa_cli.results.pictures.draw_heatmap", draw)
        write(tmp_path / "out", [thin, large, make_prediction(tmp_path / "b.png", 1.0)], {"heatmap"})
    assert ["memory" in row["error"] for row in read_csv(tmp_path / "out")] == [True, True, True]
    with monkeypatch.context() as patch:
        patch.setattr("cfa_cli.results.pictures.JPEG_SIDE", 100_000)
        write(tmp_path / "out", [thin, large], {"heatmap"}, force=True)
    assert ["2 x 70000 px" in row["error"] for row in read_csv(tmp_path / "out")] == [True, False]
    write(tmp_path / "out", [thin], {"heatmap"}, resume=True)
    assert [row["error"] for row in read_csv(tmp_path / "out")] == ["", ""]
