"""What a model says that it cannot see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cfa_cli.visibility import visibility


@pytest.mark.parametrize(
    ("source", "size", "expected"),
    [
        (
            (3000, 4000),
            (192, 256),
            "Images of 4000 x 3000 px are reduced to 256 x 192 (width x height): defects below about 60 px will be "
            "missed; --size 768x1024 sees 16 px, 16 times slower.",
        ),
        (
            (500, 1260),
            (144, 352),
            "Images of 1260 x 500 px are reduced to 352 x 144 (width x height): defects below about 14 px will be "
            "missed; --size full sees 4 px, 12 times slower.",
        ),
        (
            (2000, 16384),
            (2048, 8192),
            "Images of 16384 x 2000 px are reduced to 8192 x 2048 (width x height): defects below about 8 px will be "
            "missed.",
        ),
        ((300, 320), (224, 240), None),
        ((100, 100), (224, 224), None),
    ],
)
def test_what_is_said_of_reduced_images(fitted, source, size, expected):
    training = replace(fitted.bundle.training, height=source[0], width=source[1])
    bundle = replace(fitted.bundle, training=training, geometry=replace(fitted.bundle.geometry, size=size))
    found = visibility(bundle)
    assert (found and found.sentence) == expected
    assert visibility(replace(bundle, training=None)) is None
