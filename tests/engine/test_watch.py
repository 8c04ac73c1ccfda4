import os
import shutil
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from cfa_cli.data import watch as watching
from cfa_cli.engine.model import Model
from cfa_cli.engine.predict_options import PredictOptions
from cfa_cli.engine.watch import watch
from cfa_cli.errors import InputError
from cfa_cli.geometry import to_input
from cfa_cli.records import Geometry
from cfa_cli.results.scores import read_run
from tests.results.runs import make_bundle

SUFFIXES = [".png", ".jpg", ".webp", ".bmp", ".tiff", ".ppm"]


def encoded(suffix, value=100):
    pixels = np.random.default_rng(value).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    pixels[:32] = value
    return cv2.imencode(suffix, pixels)[1].tobytes()


class MeanScorer:
    """Scores an image by its mean, in place of a network."""

    geometry = Geometry((32, 32), None, (0, 0, 0), (1, 1, 1))
    warnings = ()
    training = None

    def prepare(self, image):
        return to_input(image, self.geometry)

    def __call__(self, inputs):
        means = inputs.mean(dim=(1, 2, 3)).numpy()
        return means, np.ones((len(means), 32, 32), np.float32) * means[:, None, None]


class Inbox:
    """A watched folder, and what has been scored from it."""

    def __init__(self, folder, scorer=None, **options):
        self.folder, self.stop, self.results = folder, threading.Event(), {}
        self.names = []
        self.model = Model(replace(make_bundle(), geometry=MeanScorer.geometry), scorer or MeanScorer())
        self.options = options
        self.thread = threading.Thread(target=self._watch)

    def _watch(self):
        self.run = watch(self.model, self.folder, self.stop, PredictOptions(threshold=0.5, **self.options))
        for prediction in self.run:
            self.names.append(prediction.source.name)
            self.results[prediction.source.name] = prediction

    def __enter__(self):
        self.thread.start()
        time.sleep(0.3)  # the watcher is at work: what follows arrives
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def wait_for(self, *names, seconds=20):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if set(names) <= set(self.results):
                return [self.results[name] for name in names]
            time.sleep(0.01)
        raise AssertionError(f"{set(names) - set(self.results)} not scored")


def test_what_is_there_and_what_arrives_is_scored_once(tmp_path):
    (tmp_path / "before.png").write_bytes(encoded(".png"))
    with Inbox(tmp_path) as inbox:
        inbox.wait_for("before.png")
        (tmp_path / ".hidden.png").write_bytes(encoded(".png"))
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / "new").mkdir()
        for suffix in SUFFIXES:
            (tmp_path / "new" / f"a{suffix}").write_bytes(encoded(suffix))
        (tmp_path / ".moving").write_bytes(encoded(".png"))
        (tmp_path / ".moving").rename(tmp_path / "moved.png")
        found = inbox.wait_for("moved.png", *(f"new/a{suffix}" for suffix in SUFFIXES))
        for prediction in found:
            assert prediction.error is None
            assert prediction.image.shape == (64, 64, 3)
            assert prediction.map.shape == (64, 64)
        time.sleep(0.3)
    assert sorted(inbox.names) == sorted(["before.png", "moved.png", *(f"new/a{suffix}" for suffix in SUFFIXES)])
    assert inbox.run.summary.unfinished == ()


def test_an_image_that_is_overwritten_is_scored_again_and_its_files_are_replaced(tmp_path):
    """Size or modification time decides, while it is watched and when the run is taken up."""
    path, out = tmp_path / "a.png", tmp_path / "out"

    def write(value):
        (tmp_path / ".new").write_bytes(encoded(".bmp", value))  # all of one size
        (tmp_path / ".new").rename(path)

    def has_rows(count):
        deadline = time.monotonic() + 20
        while len(inbox.names) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return (out / "overlays" / "a.png").read_bytes()

    pictures = []
    with Inbox(tmp_path, out=out) as inbox:
        for value in (50, 100, 150):
            write(value)
            pictures.append(has_rows(len(pictures) + 1))
    write(200)  # while nobody watches
    with Inbox(tmp_path, out=out, resume=True) as inbox:
        pictures.append(has_rows(1))
        path.touch()
        assert has_rows(2) == pictures[-1]
    assert len(set(pictures)) == 4
    with Inbox(tmp_path, out=out, resume=True) as inbox:
        time.sleep(0.3)
    assert inbox.names == []
    rows = read_run(out)[1]
    assert [row.name for row in rows] == ["a"] * 5
    assert [row.score for row in rows] == sorted(row.score for row in rows)
    assert below(out / "overlays") == ["a.png"]


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_many_files_at_once_all_get_their_row(tmp_path):
    content = encoded(".png")
    with Inbox(tmp_path, out=tmp_path / "out", save=()) as inbox:
        for number in range(2000):
            (tmp_path / f"{number}.png").write_bytes(content)
        inbox.wait_for(*(f"{number}.png" for number in range(2000)), seconds=60)
    assert len(inbox.names) == 2000
    assert (tmp_path / "out" / "scores.csv").read_bytes().count(b"\n") == 2001


def test_what_has_not_been_scored_at_the_end_is_named(tmp_path):
    class StoppingScorer(MeanScorer):
        """Is busy with the first images while the end comes."""

        def __call__(self, inputs):
            if (tmp_path / "0.png").exists():
                inbox.stop.set()
            return super().__call__(inputs)

    inbox = Inbox(tmp_path, scorer=StoppingScorer())
    (tmp_path / "cut.jpg").write_bytes(encoded(".jpg")[:500])
    with inbox:
        for number in range(50):
            (tmp_path / f"{number}.png").write_bytes(encoded(".png"))
    unscored = [name for path in inbox.run.summary.unfinished if (name := path.rsplit("/")[-1]) != "cut.jpg"]
    assert len(unscored) == len(inbox.run.summary.unfinished) - 1  # cut.jpg is among them
    assert sorted([*inbox.names, *unscored]) == sorted(f"{number}.png" for number in range(50))
    assert unscored


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    with Inbox(tmp_path) as inbox:
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "folder.png").mkdir()
        (tmp_path / "a.png").write_bytes(encoded(".png"))
        inbox.wait_for("a.png")
    assert inbox.names == ["a.png"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_image_is_scored_when_it_is_written_to_its_end(tmp_path, suffix):
    content = encoded(suffix)
    with Inbox(tmp_path) as inbox, (tmp_path / f"slow{suffix}").open("wb", buffering=0) as file:
        for part in np.array_split(np.frombuffer(content, np.uint8), 6):
            assert inbox.results == {}
            file.write(part.tobytes())
            time.sleep(0.12)
        (whole,) = inbox.wait_for(f"slow{suffix}")
        (tmp_path / "whole.png").write_bytes(encoded(".png"))
        inbox.wait_for("whole.png")
    assert whole.error is None
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(whole.image, expected)


def test_a_file_that_is_written_on_while_it_is_scored_is_scored_again(tmp_path):
    path, final = tmp_path / "a.png", encoded(".png", 200)

    class LateScorer(MeanScorer):
        def __call__(self, inputs):
            if path.exists() and path.read_bytes() != final:
                path.write_bytes(final)
            return super().__call__(inputs)

    with Inbox(tmp_path, scorer=LateScorer()) as inbox:
        path.write_bytes(encoded(".png", 100))
        (result,) = inbox.wait_for("a.png")
    assert result.image[0, 0].tolist() == [200, 200, 200]


def test_a_file_that_stays_unreadable_is_reported_and_one_that_vanishes_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "SETTLED", 0.5)
    with Inbox(tmp_path) as inbox:
        (tmp_path / "gone.png").write_bytes(encoded(".png")[:500])
        (tmp_path / "cut.png").write_bytes(encoded(".png")[:500])
        (tmp_path / "damaged.tiff").write_bytes(b"II*\0" + bytes(500))
        time.sleep(0.1)
        (tmp_path / "gone.png").unlink()
        (cut, damaged) = inbox.wait_for("cut.png", "damaged.tiff")
        assert "cut off" in cut.error
        assert damaged.error is not None
        assert damaged.score is None
        assert "gone.png" not in inbox.results


def test_the_folder_may_be_removed_and_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "RESCAN", 1000)  # it must be noticed, not come upon
    folder = tmp_path / "inbox"
    folder.mkdir()
    with Inbox(folder) as inbox:
        for turn in range(3):
            shutil.rmtree(folder)
            time.sleep(0.1 * turn)
            folder.mkdir()
            for name in (f"{turn} at once.png", f"{turn} later.png"):
                (folder / name).write_bytes(encoded(".png"))
                inbox.wait_for(name)
                time.sleep(0.3)


def test_watching_needs_a_folder(tmp_path, model):
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for name, message in [("none", "no folder"), ("file", "not a folder"), ("pipe", "not a folder")]:
        with pytest.raises(InputError, match=message):
            watch(model, tmp_path / name, threading.Event(), PredictOptions())
    with pytest.raises(InputError, match="holds the watched folder"):
        watch(model, tmp_path, threading.Event(), PredictOptions(out=tmp_path))


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix not in (".tiff", ".ppm")])
def test_the_end_of_an_image_is_told_from_every_cut(tmp_path, suffix):
    content = encoded(suffix)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert watching.ends(path)
    for cut in range(0, len(content), max(1, len(content) // 50)):
        path.write_bytes(content[:cut])
        assert not watching.ends(path)
