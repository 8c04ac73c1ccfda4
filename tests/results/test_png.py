"""PNG files as other libraries read them, by either compressor."""

import importlib
import io
import sys

import numpy as np
import pytest
from PIL import Image

from cfa_cli.results import png


@pytest.fixture(params=["isal", "zlib"])
def encode_png(request, monkeypatch):
    """The function, with one compressor or the other."""
    if request.param == "isal":
        pytest.importorskip("isal", reason="the quicker compressor is not installed")
    else:
        monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    yield importlib.reload(png).encode_png
    monkeypatch.undo()
    importlib.reload(png)


@pytest.mark.parametrize(
    "shape", [(1, 1), (37, 41), (700, 900), (32, 33, 3), (500, 801, 3), (1, 300_001, 3), (64, 5, 4)]
)
def test_pixels_are_read_back_as_they_were(encode_png, shape):
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) // 8 % 256
    noise = rng.integers(0, 9, shape)
    pixels = (noise + (smooth if len(shape) == 2 else smooth[..., None])).astype(np.uint8)
    data = encode_png(pixels[:, ::-1])  # a view: rows need not lie one after the other
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # every checksum
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == {2: "L", 3: "RGB", 4: "RGBA"}[len(shape) if len(shape) == 2 else shape[2]]
        assert np.array_equal(np.asarray(image), pixels[:, ::-1])
    assert shape[0] < 500 or len(data) < 0.65 * pixels.nbytes
