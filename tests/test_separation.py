"""Held-out good images that score far above the rest: which they are, and what is said."""

from dataclasses import replace

import numpy as np
import pytest

from cfa_cli.evidence import HoldoutImages
from cfa_cli.separation import separation
from tests.results.runs import make_bundle


def hold_out(scores, names=()):
    """A model with these held-out scores, and their images' names in the same order."""
    order = np.argsort(scores)
    values = tuple(float(scores[index]) for index in order)
    bundle = make_bundle()
    like = HoldoutImages(values, values, values, tuple(names[index] for index in order) if names else ())
    return replace(
        bundle, calibration=replace(bundle.calibration, holdout_scores=values, threshold=values[-1]), holdout=like
    )


EVEN = [2.0 ** (step / 16) for step in range(1, 17)]


@pytest.mark.parametrize(("steps", "outlier"), [(36, False), (38, True)])
def test_the_fence_by_hand(steps, outlier):
    """One more image moves the quartiles of 17 to the 5th and the 13th: the fence lies at 13 + 3 * 8 = 37 steps."""
    found = separation(hold_out([*EVEN, 2.0 ** (steps / 16)]))
    assert len(found.outliers) == outlier
    if outlier:  # the others' threshold: at 16 images and a rate of 5 % the highest of them
        assert found.outliers[0].ratio == pytest.approx(2.0 ** (steps / 16) / 2.0)


def test_outliers_are_named_with_how_far_above_the_others_they_lie():
    scores = [1.0, 1.01, 0.99, 1.02, 0.98, 1.03, 1.0, 1.01, 0.99, 1.02, 1.9, 3.0]
    names = [*"abcdefghij", "late/\x1b[2Jg.png", "h.png"]
    found = separation(hold_out(scores, names))
    assert [(one.name, one.score) for one in found.outliers] == [("h.png", 3.0), (names[10], 1.9)]
    assert found.sentence == (
        "2 of 12 held-out good images score far above the rest: h.png (2.9 times the threshold of the others), "
        "late/\\x1b[2Jg.png (1.8 times the threshold of the others). Look at them: if they are defective, remove them "
        "and fit again."
    )


def test_what_hardly_changes_the_threshold_is_no_outlier():
    """So alike that the highest lies over the fence, but only 10 % above the rest."""
    found = separation(hold_out([1.0] * 20 + [1.1]))
    assert found.outliers == ()
    assert found.sentence == (
        "None of 21 held-out good images scores far above the rest: the highest 1.1 times the median."
    )


def test_models_without_names_or_with_few_images():
    unnamed = replace(hold_out([1.0] * 10 + [4.0]), holdout=None)
    assert [one.name for one in separation(unnamed).outliers] == [""]
    assert "1 of 11 held-out good images scores far above the rest: one (4 times" in separation(unnamed).sentence
    assert separation(hold_out([1.0, 1.0, 1.0, 9.0])) is None


@pytest.mark.parametrize("images", [8, 20, 48])
def test_good_images_alone_are_rarely_outliers(images):
    rng = np.random.default_rng(images)
    found = [bool(separation(hold_out(np.exp(rng.normal(0, 0.3, images)))).outliers) for _ in range(300)]
    assert np.mean(found) < 0.04
