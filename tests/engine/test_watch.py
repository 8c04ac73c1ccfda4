import shutil
import threading
import time

import cv2
import numpy as np
import pytest

from cfa_cli.data import watch as arrivals
from cfa_cli.engine.watch import watch
from cfa_cli.errors import InputError
from cfa_cli.geometry import to_input
from cfa_cli.records import Geometry

SUFFIXES = [".png", ".jpg", ".webp", ".bmp", ".tiff"]


def encoded(suffix, value=100):
    pixels = np.random.default_rng(value).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    pixels[:32] = value
    return cv2.imencode(suffix, pixels)[1].tobytes()


class MeanScorer:
    """Scores an image by its mean, in place of a network."""

    geometry = Geometry((32, 32), None, (0, 0, 0), (1, 1, 1))

    def prepare(self, image):
        return to_input(image, self.geometry)

    def __call__(self, inputs):
        means = inputs.mean(dim=(1, 2, 3)).numpy()
        return means, np.ones((len(means), 32, 32), np.float32) * means[:, None, None]


class Inbox:
    """A watched folder, and what has been scored from it."""

    def __init__(self, folder, ignore=None, scorer=None):
        self.folder, self.stop, self.results = folder, threading.Event(), {}
        self.scorer = scorer or MeanScorer()
        self.ignore = ignore
        self.thread = threading.Thread(target=self._watch)

    def _watch(self):
        done = lambda source: source.name in self.results  # noqa: E731
        for batch in watch(self.scorer, self.folder, 0.5, self.stop, is_done=done, ignore=self.ignore):
            for prediction in batch:
                assert prediction.source.name not in self.results  # no image twice
                self.results[prediction.source.name] = prediction

    def __enter__(self):
        self.thread.start()
        time.sleep(0.3)  # the watcher is at work: what follows arrives
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def wait_for(self, *names):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if set(names) <= set(self.results):
                return [self.results[name] for name in names]
            time.sleep(0.01)
        raise AssertionError(f"{set(names) - set(self.results)} not scored")


def test_what_is_there_and_what_arrives_is_scored_once(tmp_path):
    (tmp_path / "before.png").write_bytes(encoded(".png"))
    (tmp_path / "out").mkdir()
    with Inbox(tmp_path, ignore=tmp_path / "out") as inbox:
        inbox.wait_for("before.png")
        (tmp_path / "out" / "overlay.png").write_bytes(encoded(".png"))
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
            assert prediction.map.shape == (32, 32)
        (tmp_path / "before.png").touch()
        time.sleep(0.3)
        assert len(inbox.results) == 2 + len(SUFFIXES)


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
    monkeypatch.setattr(arrivals, "SETTLED", 0.5)
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
    monkeypatch.setattr(arrivals, "RESCAN", 1000)  # it must be noticed, not come upon
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


def test_watching_needs_a_folder(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        watch(MeanScorer(), tmp_path / "none", 0.5, threading.Event(), is_done=lambda source: False)


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".tiff"])
def test_the_end_of_an_image_is_told_from_every_cut(tmp_path, suffix):
    content = encoded(suffix)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert arrivals.ends(path)
    for cut in range(0, len(content), max(1, len(content) // 50)):
        path.write_bytes(content[:cut])
        assert not arrivals.ends(path)
