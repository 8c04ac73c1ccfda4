"""Large images in tiles and bands: what the whole image gives."""

import pytest
import torch

from cfa_cli.model import tiles
from cfa_cli.model.backbone import Backbone
from cfa_cli.model.descriptor import Descriptor
from cfa_cli.model.tiles import extract_levels, plan_tiles, row_bands


def make_backbone(name="resnet18"):
    torch.manual_seed(0)
    return Backbone(name)


@pytest.mark.parametrize(
    ("height", "width", "stride"), [(1100, 2304, 1), (2050, 1100, 8), (1601, 1503, 1), (1601, 1503, 8)]
)
def test_tiles_give_the_whole_images_maps(monkeypatch, height, width, stride):
    backbone = make_backbone()
    backbone.stride = stride
    monkeypatch.setattr(tiles, "TILE", 1024)
    monkeypatch.setattr(tiles, "WHOLE_PIXELS", 1024**2)
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        tiled = extract_levels(backbone, image)
        monkeypatch.setattr(tiles, "WHOLE_PIXELS", height * width)
        whole = extract_levels(backbone, image)
        halves = extract_levels(backbone, image, torch.float16)
    assert all(torch.equal(half, level.half()) for half, level in zip(halves, whole, strict=True))
    for part, level in zip(tiled, whole, strict=True):
        assert part.shape == level.shape
        assert float((part - level).abs().max()) <= 1e-3 * float(level.abs().max())
        assert not torch.equal(part, torch.zeros_like(part))


def test_the_overlap_is_the_receptive_fields():
    # resnet18's third level looks at 211 px (Araujo et al., 2019): 105 to each side; and one position for the pooling.
    plan = plan_tiles(make_backbone(), 4000, 3000)
    assert plan.overlap in (128, 144)
    assert plan.strides == [4, 8, 16]
    assert plan.sizes == [(1000, 750), (500, 375), (250, 188)]
    thinned = make_backbone()
    thinned.stride = 8
    plan = plan_tiles(thinned, 4000, 3000)
    assert plan.strides == [8, 8, 16]
    assert plan.sizes == [(500, 375), (500, 375), (250, 188)]


def test_a_backbone_that_looks_everywhere_is_not_cut():
    assert plan_tiles(make_backbone("efficientnet_b0"), 1600, 1600) is None  # squeeze-and-excitation


def test_the_usual_grid_is_one_band():
    assert list(row_bands(56, 56)) == [None]


@pytest.mark.parametrize(
    "sizes", [((40, 50), (20, 25), (10, 13)), ((41, 33), (21, 17), (11, 9)), ((7, 9), (7, 9), (1, 1))]
)
def test_bands_and_single_positions_give_the_whole_grids_descriptors(monkeypatch, sizes):
    torch.manual_seed(0)
    levels = [torch.randn(2, c, *size) for c, size in zip((3, 4, 5), sizes, strict=True)]
    descriptor = Descriptor((3, 4, 5), 6)
    whole = descriptor(levels)
    places = torch.arange(sizes[0][0] * sizes[0][1]).flip(0)[::3]
    at_places = descriptor.at([level[:1] for level in levels], places)
    torch.testing.assert_close(at_places, whole[0].flatten(0, 1)[places], rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(tiles, "BAND_POSITIONS", 3 * sizes[0][1] + 1)
    bands = list(row_bands(*sizes[0]))
    assert bands[0] == (0, 3)
    assert bands[-1][1] == sizes[0][0]
    torch.testing.assert_close(
        torch.cat([descriptor(levels, rows) for rows in bands], dim=1), whole, rtol=1e-5, atol=1e-5
    )
