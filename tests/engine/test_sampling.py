"""A fit on any number of images: a seeded sample, by folder, of which nothing else is read."""

import json
from collections import Counter
from pathlib import Path

import pytest

from cfa_cli.engine.sampling import sample_by_folder


def test_each_folder_has_its_share():
    counts = {"day": 70_000, "dusk": 20_000, "night": 9_990, "repair": 10}
    paths = [Path(folder, f"{number}.png") for folder, count in counts.items() for number in range(count)]
    drawn = sample_by_folder(paths, 2_000, seed=3)
    assert len(set(drawn)) == 2_000
    shares = Counter(path.parent.name for path in drawn)
    for folder, count in counts.items():
        assert abs(shares[folder] - count / 50) < 1
    assert drawn == sample_by_folder(paths, 2_000, seed=3)
    assert drawn != sample_by_folder(paths, 2_000, seed=4)
    assert sample_by_folder(paths[:50], 50, seed=3) == paths[:50]


def test_every_image_is_as_likely_as_another():
    paths = [Path("a" if number < 7 else "b", f"{number}.png") for number in range(20)]
    often = Counter(path for seed in range(2_000) for path in sample_by_folder(paths, 5, seed))
    assert all(abs(often[path] / 2_000 - 5 / 20) < 0.05 for path in paths)  # five standard deviations
    order = sample_by_folder(paths, 12, seed=1)
    assert [paths.index(path) for path in order] == sorted(paths.index(path) for path in order)


def test_fit_reads_nothing_but_its_sample_and_says_so(cfa, good_dir, monkeypatch):
    read = set()
    from cfa_cli.data import images

    decode = images.read_image

    def watched(path, *rest):
        read.add(path)
        return decode(path, *rest)

    for module in ("cfa_cli.engine.reading", "cfa_cli.data.depth"):
        monkeypatch.setattr(f"{module}.read_image", watched)
    options = ["--max-images", 8, "--weights", "embedded", "--size", 64, "--report", "--seed", 5]
    done = cfa("fit", good_dir, *options)
    assert done.code == 0, done
    assert "6 to train on, 2 held out" in done.out
    assert "drawn from 24 (--max-images 8)" in done.out
    assert Counter(path.parent.name for path in read) == {"good": 6, "late": 2}
    provenance = json.loads(cfa("info", "cfa-model.safetensors", "--json").out)["provenance"]
    assert (provenance["images"], provenance["found"]) == (8, 24)
    page = Path("cfa-model.html").read_text(encoding="utf-8")
    assert sum(f"{number:03}.png" in page for number in range(24)) == 8


@pytest.mark.parametrize("found", [24, 25])
def test_all_are_taken_where_they_are_no_more(good_dir, found):
    from cfa_cli import FitConfig, fit

    result = fit(good_dir, FitConfig(weights="embedded", size=(64, 64), max_images=found))
    assert (result.bundle.provenance.images, result.bundle.provenance.found) == (24, None)
