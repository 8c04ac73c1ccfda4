"""The verb `predict`: arrays and streams of them, and what is written with `out`."""

from __future__ import annotations

import csv
import itertools
import json
import weakref
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cfa_cli import Model, ResultWriter, load_bundle, open_model, predict
from cfa_cli.__main__ import run as run_command
from cfa_cli.engine.scorer import score_batches
from cfa_cli.errors import BundleError, ImageError, InputError, UsageError
from cfa_cli.records import Source
from tests.conftest import GOOD_IMAGES, draw_part, write_part
from tests.results.runs import CALIBRATION


@pytest.fixture(scope="module")
def opened(model):
    return open_model(model)


def frame(number: int, defect: bool = False) -> np.ndarray:
    """A part as RGB."""
    return np.ascontiguousarray(draw_part(number, defect)[..., ::-1])


def table(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_array_is_scored_as_its_file_is(opened, tmp_path):
    path = write_part(tmp_path / "a.png", 0, defect=True)
    (of_file,) = predict(opened, path)
    image = frame(0, defect=True)
    for given in (image, [image], image[None], iter([image]), draw_part(0, defect=True)[..., ::-1]):
        (of_array,) = predict(opened, given)
        assert of_array.score == of_file.score
        assert of_array.source.name == "frame-000001"
        np.testing.assert_array_equal(of_array.map, of_file.map)
        np.testing.assert_array_equal(of_array.image, image)
    grey = image[..., 1]
    (of_grey,) = predict(opened, grey)
    (of_rgb,) = predict(opened, np.stack([grey] * 3, axis=2))
    (of_16_bit,) = predict(opened, grey.astype(np.uint16) * 257)
    assert of_grey.score == of_rgb.score
    assert of_16_bit.score == pytest.approx(of_rgb.score, rel=0.01)


WRONG = {
    "float": np.zeros((64, 64, 3), np.float32),
    "not a number": np.full((64, 64), np.nan),
    "RGBA": np.zeros((64, 64, 4), np.uint8),
    "channels first": np.zeros((3, 64, 64), np.uint8),
    "a line": np.zeros(64, np.uint8),
    "small": np.zeros((64, 8), np.uint8),
    "empty": np.zeros((0, 0), np.uint8),
    "objects": np.empty((64, 64), object),
    "signed": np.zeros((64, 64), np.int64),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_array_is_its_own_row_in_a_stream_and_an_error_by_itself(opened, wrong):
    with pytest.raises(ImageError) as caught:
        predict(opened, wrong)
    assert caught.value.hint
    good, bad, last = predict(opened, [frame(0), wrong, frame(1)])
    assert (good.error, last.error, bad.score) == (None, None, None)
    assert "frame-000002" in bad.error


def test_a_stream_may_hold_arrays_paths_and_what_is_neither(opened, tmp_path):
    path = write_part(tmp_path / "folder" / "a.png", 0)
    mixed = [frame(0), str(path), None, path.parent, tmp_path / "none.png", 5]
    for inputs in (mixed, iter(mixed)):
        found = list(predict(opened, inputs))
        assert [p.source.path.name for p in found] == [
            *("frame-000001", "a.png", "frame-000002", "a.png", "none.png", "frame-000003"),
        ]
        assert [p.error is None for p in found] == [True, True, False, True, False, False]
        assert found[0].score == found[1].score == found[3].score


def test_an_iterator_is_asked_for_the_next_only_after_the_result_before(opened):
    """A camera may run for ever, and write each frame into the same memory."""
    asked, buffer = 0, np.empty((72, 80, 3), np.uint8)

    def camera():
        nonlocal asked
        for asked in itertools.count(1):
            buffer[:] = frame(asked)
            yield buffer

    with predict(opened, camera()) as run:
        for number, prediction in enumerate(itertools.islice(run, 20), start=1):
            assert asked == number
            np.testing.assert_array_equal(prediction.image, frame(number))
        assert run.summary.images == 20


def test_a_file_that_vanishes_after_it_was_listed_is_its_own_row(opened, tmp_path):
    for number in range(3):
        write_part(tmp_path / f"{number}.png", number)
    run = predict(opened, tmp_path)
    (tmp_path / "1.png").unlink()
    assert [p.error is None for p in run] == [True, False, True]
    assert run.summary.errors[0].error == f"There is no file {tmp_path / '1.png'}."


def test_a_rate_that_cannot_be_had_is_warned_about(opened):
    assert predict(opened, frame(0)).warnings == ()
    (warning,) = predict(opened, frame(0), max_fpr=0.01).warnings
    assert "5 held-out images" in warning


OUT_OF_MEMORY = [  # as Python, OpenCV, and torch on a CPU and on a GPU say it
    MemoryError(),
    cv2.error("OpenCV(4.11.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: ..."),
    torch.OutOfMemoryError("CUDA out of memory."),
]


@pytest.mark.parametrize("place", ["reading", "scoring"])
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_an_image_that_does_not_fit_into_memory_is_its_own_row(opened, monkeypatch, place, error):
    """In memory's place: an image of a certain mean is too large, where it is resized, or in the network."""
    images = [frame(number) for number in range(12)]
    images[5][:] = 7

    class Small:
        geometry, warnings, training = opened.scorer.geometry, (), opened.scorer.training

        def prepare(self, image):
            if place == "reading" and image.mean() == 7:
                raise error
            return opened.scorer.prepare(image)

        def __call__(self, inputs):
            if place == "scoring" and (inputs == opened.scorer.prepare(images[5])).all(dim=(1, 2, 3)).any():
                raise error
            return opened.scorer(inputs)

    found = list(predict(Model(opened.bundle, Small()), images))
    assert [p.error is None for p in found] == [index != 5 for index in range(12)]
    assert "frame-000006 does not fit into memory" in found[5].error
    expected = [p.score for p in predict(opened, images)]
    assert [p.score for p in found if p.score] == expected[:5] + expected[6:]


def test_any_other_fault_of_the_network_is_not_hidden(opened):
    class Broken:
        geometry, warnings, training, prepare = opened.scorer.geometry, (), None, opened.scorer.prepare

        def __call__(self, inputs):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(predict(Model(opened.bundle, Broken()), frame(0)))


def test_large_images_are_held_few_at_a_time(opened):
    """Read, waiting, scored and handed out: together some hundred megabytes, however many there are."""
    alive = weakref.WeakSet()

    class Watching:
        geometry, warnings, training = opened.scorer.geometry, (), None

        def prepare(self, image):
            alive.add(Held(image))
            return opened.scorer.prepare(image[:64, :64])

        def __call__(self, inputs):
            return opened.scorer(inputs)

    class Held:
        def __init__(self, image):
            self.bytes = image.nbytes
            weakref.finalize(image, alive.discard, self)
            kept.append(self)

    kept = []
    most = 0
    large = np.zeros((4000, 5000), np.uint8)  # 60 MB as RGB
    stream = score_batches(
        Watching(), (Source(Path(str(n)), str(n), large) for n in range(20)), CALIBRATION, keep_images=True
    )
    for batch in stream:
        most = max(most, sum(held.bytes for held in alive))
        del batch
    assert 60e6 <= most <= 500e6


def test_what_is_raised_while_the_next_is_made_reaches_the_caller(opened):
    def broken():
        yield frame(0)
        raise OSError("the cable is out")

    run = predict(opened, broken())
    assert next(run).score > 0
    with pytest.raises(OSError, match="the cable is out"):
        next(run)


def test_errors_of_arguments_come_at_the_call(opened, model, tmp_path):
    path = write_part(tmp_path / "a.png", 0)
    (tmp_path / "no.onnx").write_bytes(b"x")
    for wrong, arguments in [
        (UsageError, (opened, path, {"threshold": 0})),
        (UsageError, (opened, path, {"max_fpr": 1})),
        (UsageError, (opened, path, {"max_fpr": 0.1, "threshold": 1})),
        (UsageError, (opened, path, {"save": "overlay"})),
        (UsageError, (opened, path, {"save": ["overlays"]})),
        (UsageError, (model, path, {"device": "abacus"})),
        (UsageError, (opened, 5, {})),
        (InputError, (opened, [], {})),
        (InputError, (opened, tmp_path / "none.png", {})),
        (InputError, (opened, "a\0b.png", {})),
        (BundleError, (tmp_path / "none.safetensors", path, {})),
        (BundleError, (tmp_path / "no.onnx", path, {})),
        (InputError, (opened, path, {"out": path})),
    ]:
        with pytest.raises(wrong):
            predict(*arguments[:2], **arguments[2])


def test_out_is_written_as_the_command_writes_it(opened, model, tmp_path, monkeypatch):
    """By `out`, and by a ResultWriter of the caller's: the same table, pictures and report as the terminal's."""
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        write_part(Path("in", "late" if number % 2 else "", f"{number}.png"), number, defect=number == 7)
    Path("in/empty.png").write_bytes(b"")
    save = ("overlay", "map", "mask", "heatmap")
    assert run_command(["predict", "in", "-m", str(model), "-o", "cli", "--save", ",".join(save), "-q"]) == 8
    with predict(opened, "in", out="python", save=save) as run:
        names = []
        for prediction in run:
            names.append(prediction.source.path.name)
            assert prediction.image is None  # what is written is let go
            assert table(Path("python"))[len(names) - 1]["path"] == str(prediction.source.path)
    with ResultWriter("writer", run.bundle, save) as writer:
        for prediction in predict(opened, "in"):
            writer.write(prediction)

    def files(out):
        return {path.relative_to(out) for path in Path(out).rglob("*") if path.is_file()}

    without_time = [{**row, "milliseconds": ""} for row in table(Path("cli"))]
    for out in ("python", "writer"):
        assert files(out) == files("cli")
        assert [{**row, "milliseconds": ""} for row in table(Path(out))] == without_time
        for name in files("cli"):
            if name.parts[0] in ("overlays", "maps", "masks", "heatmaps", "report"):
                assert Path(out, name).read_bytes() == Path("cli", name).read_bytes()
    assert len(names) == len(without_time) == 21


def test_the_summary_counts_and_names(opened, tmp_path):
    images = [frame(number, defect=number in (3, 5)) for number in range(12)]
    images[8] = np.zeros((4, 4), np.uint8)
    first = predict(opened, images[:6], out=tmp_path, save=())
    assert first.summary.images == 0
    assert len(list(first)) == 6
    run = predict(opened, iter(images[6:]), out=tmp_path, save=(), resume=True)
    assert [p.source.name for p in run] == [f"frame-{number:06}" for number in range(7, 13)]
    summary = run.summary
    assert (summary.images, summary.good, summary.anomalous, summary.error_count, summary.done_before) == (
        *(12, 9, 2, 1, 6),
    )
    assert {Path(one.path).name for one in summary.worst[:2]} == {"frame-000004", "frame-000006"}
    assert [one.score for one in summary.worst] == sorted((one.score for one in summary.worst), reverse=True)
    assert (len(summary.worst), len(summary.results), summary.report) == (10, 0, None)
    complete = json.loads(json.dumps(asdict(run.complete_summary)))
    assert [one["path"].rsplit("/")[-1] for one in complete["results"]] == [f"frame-{n:06}" for n in range(1, 13)]
    assert [one["path"].rsplit("/")[-1] for one in complete["errors"]] == ["frame-000009"]
    # A camera's frames are others each time: they are numbered on, from the first number without a score.
    (more,) = predict(opened, iter(images[:1]), out=tmp_path, save=(), resume=True)
    assert more.source.name == "frame-000009"


def test_a_run_that_is_left_early_keeps_what_is_done(opened, tmp_path):
    with predict(opened, [frame(number) for number in range(30)], out=tmp_path) as run:
        first = next(run)
    assert first.source.name == "frame-000001"
    assert table(tmp_path)[0]["path"] == "frame-000001"
    names = [row["path"] for row in table(tmp_path)]
    assert names == [f"frame-{number:06}" for number in range(1, len(names) + 1)]
    assert len(names) < 30
    for arrays in ([frame(0)], frame(0), [str(tmp_path), frame(0)]):
        with pytest.raises(UsageError, match="no names by which a run could be resumed"):
            predict(opened, arrays, out=tmp_path, resume=True)
    assert [row["path"] for row in table(tmp_path)] == names


def test_a_bundle_a_path_and_an_opened_model_score_the_same(opened, model):
    scores = {next(predict(what, frame(0))).score for what in (opened, model, str(model), load_bundle(model))}
    assert len(scores) == 1


def test_progress_counts_up_to_the_number_of_images_where_that_is_known(opened, good_dir):
    for inputs, count in (
        (good_dir, GOOD_IMAGES),
        ([frame(number) for number in range(3)], 3),
        (iter([frame(0)]), None),
    ):
        steps = []
        list(predict(opened, inputs, progress=steps.append))
        assert [(step.done, step.total) for step in steps] == [(number + 1, count) for number in range(count or 0)]
