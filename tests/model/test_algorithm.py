"""Each step of the algorithm against a plain, slow version written here from its formulas."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import mahalanobis

from cfa_cli.model import scoremap
from cfa_cli.model.backbone import Backbone
from cfa_cli.model.bank import compress, ema_bank, kmeans_bank, mean_bank, whitening
from cfa_cli.model.descriptor import Descriptor, descriptor_channels, is_efficientnet, pool_levels
from cfa_cli.model.loss import coupled_hypersphere_loss
from cfa_cli.model.network import Network
from cfa_cli.model.scoremap import ScoreMap, image_scores, position_baseline, position_scores
from cfa_cli.model.tiles import extract_levels, level_shapes

GRIDS = [(8, 8), (6, 10), (9, 4)]


def close(actual, expected, relative=1e-5):
    actual, expected = torch.as_tensor(actual).detach().double(), torch.as_tensor(expected).detach().double()
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= relative * float(expected.abs().max())


def plain_pool(maps, side=3):
    """Mean of side x side pixels with zeros around, one pixel at a time."""
    height, width = maps.shape[-2:]
    result = torch.zeros_like(maps)
    for y in range(height):
        for x in range(width):
            top, left = y - side // 2, x - side // 2
            window = maps[:, :, max(0, top) : top + side, max(0, left) : left + side]
            result[:, :, y, x] = window.sum(dim=(2, 3)) / side**2
    return result


def plain_bilinear(maps, height, width):
    """Half-pixel centres, clamped at the border, one pixel at a time."""
    *_, h, w = maps.shape
    result = torch.zeros(*maps.shape[:2], height, width, dtype=maps.dtype)
    for y in range(height):
        for x in range(width):
            sy = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
            sx = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
            y0, x0 = math.floor(sy), math.floor(sx)
            y1, x1, fy, fx = min(y0 + 1, h - 1), min(x0 + 1, w - 1), sy - y0, sx - x0
            top = maps[:, :, y0, x0] * (1 - fx) + maps[:, :, y0, x1] * fx
            bottom = maps[:, :, y1, x0] * (1 - fx) + maps[:, :, y1, x1] * fx
            result[:, :, y, x] = top * (1 - fy) + bottom * fy
    return result


def make_levels(grid, batch=2, channels=(5, 7, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [grid, (-(-grid[0] // 2), -(-grid[1] // 2)), (-(-grid[0] // 4), -(-grid[1] // 4))]
    return [torch.randn(batch, c, *size, generator=generator) for c, size in zip(channels, sizes, strict=True)]


def plain_descriptors(levels, weight, bias):
    """Concatenate at the first level's size, add the coordinates, multiply position by position."""
    height, width = levels[0].shape[-2:]
    features = torch.cat([plain_bilinear(level.double(), height, width) for level in levels], dim=1)
    result = torch.zeros(len(features), height, width, len(bias), dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            row = -1 + 2 * y / (height - 1) if height > 1 else -1
            column = -1 + 2 * x / (width - 1) if width > 1 else -1
            place = torch.tensor([[row, column]], dtype=torch.float64).expand(len(features), 2)
            result[:, y, x] = torch.cat([features[:, :, y, x], place], dim=1) @ weight.double().T + bias.double()
    return result


def plain_nearest(queries, bank, k):
    squared = ((queries.double()[:, None] - bank.double()[None]) ** 2).sum(-1)
    values, indices = squared.sort(dim=1)
    return values[:, :k], indices[:, :k]


@pytest.mark.parametrize("grid", GRIDS)
def test_pooling_averages_three_by_three_with_zeros_around(grid):
    levels = make_levels(grid)
    for pooled, level in zip(pool_levels(levels, (1, 1, 1)), levels, strict=True):
        close(pooled, plain_pool(level))
    for pooled, level in zip(pool_levels(levels, (1, 1, 1), divide_by_channels=True), levels, strict=True):
        close(pooled, plain_pool(level) / level.shape[1])


@pytest.mark.parametrize("grid", GRIDS)
def test_thinned_maps_are_every_second_row_and_column_of_the_pooled_ones(grid):
    levels = make_levels(grid)
    for pooled, level, step in zip(pool_levels(levels, (2, 1, 3)), levels, (2, 1, 3), strict=True):
        close(pooled, plain_pool(level)[:, :, ::step, ::step])


@pytest.mark.parametrize(
    ("size", "stride"), [((64, 64), 8), ((66, 99), 8), ((50, 40), 16), ((64, 96), 5), ((64, 64), 4)]
)
def test_patches_lie_a_stride_apart_where_the_networks_own_maps_have_them(size, stride):
    torch.manual_seed(3)
    backbone, images = Backbone("resnet18"), torch.randn(1, 3, *size)
    backbone.stride = stride
    levels = extract_levels(backbone, images)
    assert level_shapes(backbone, size) == [tuple(level.shape[1:]) for level in levels]
    for level, own, map_stride in zip(levels, backbone(images), (4, 8, 16), strict=True):
        step = max(1, stride // map_stride)
        close(level, plain_pool(own, 5 if step == 4 else 3)[:, :, ::step, ::step])


@pytest.mark.parametrize("grid", GRIDS)
def test_descriptor_is_a_coordconv_over_the_concatenated_levels(grid):
    levels = make_levels(grid)
    torch.manual_seed(1)
    descriptor = Descriptor([5, 7, 3], 6)
    assert descriptor.weight.shape == (6, 17, 1, 1)
    close(descriptor(levels), plain_descriptors(levels, descriptor.weight.flatten(1), descriptor.bias))
    alone = Descriptor([5], 6)
    close(alone(levels[:1]), plain_descriptors(levels[:1], alone.weight.flatten(1), alone.bias))


@pytest.mark.parametrize("grid", GRIDS)
def test_gradients_reach_the_descriptor_as_autograd_has_them(grid):
    """The whole training step: loss, gradient by the descriptor and by r, against autograd on the plain formulas."""
    levels = make_levels(grid, batch=3)
    torch.manual_seed(2)
    descriptor = Descriptor([5, 7, 3], 6)
    bank = torch.randn(40, 6) * 0.3
    radius = torch.tensor(0.9)

    points = descriptor(levels).flatten(0, 2)
    squared, indices = plain_nearest(points.detach(), bank, 6)
    result = coupled_hypersphere_loss(points.detach(), bank, squared.float(), indices, radius)
    points.backward(result.descriptors)

    weight = descriptor.weight.detach().flatten(1).double().requires_grad_()
    bias = descriptor.bias.detach().double().requires_grad_()
    r = radius.double().requires_grad_()
    plain_points = plain_descriptors([level.double() for level in levels], weight, bias).flatten(0, 2)
    distances = ((plain_points[:, None] - bank.double()[None]) ** 2).sum(-1).sort(dim=1).values
    attraction = torch.relu(distances[:, :3] - r**2).mean() / 1e-3
    repulsion = torch.relu(r**2 - distances[:, 3:6] - 0.1).mean() / 1e-3
    assert attraction > 0
    assert repulsion > 0  # both hinges are at work in this case
    loss = attraction + repulsion
    loss.backward()

    close(result.loss, loss.detach())
    close(result.radius, r.grad)
    close(descriptor.weight.grad.flatten(1), weight.grad)
    close(descriptor.bias.grad, bias.grad)


def test_mean_bank_is_the_mean_of_each_position():
    images = [torch.randn(12, 4, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    expected = sum(image.double() for image in images) / 5
    close(mean_bank(images), expected)


def test_ema_bank_follows_each_images_nearest_features():
    images = [torch.randn(12, 4, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    bank = images[0].double().clone()
    for image in images[1:]:
        for i in range(len(bank)):
            distances = ((image.double() - bank[i]) ** 2).sum(1)
            bank[i] = 0.9 * bank[i] + 0.1 * image[distances.argmin()].double()
    close(ema_bank(images[0], ([image] for image in images[1:])), bank)
    in_parts = (torch.split(image, 5) for image in images[1:])
    close(ema_bank(images[0], in_parts), bank)


def test_whitened_distances_are_mahalanobis_distances_by_the_spread_around_centroids():
    generator = torch.Generator().manual_seed(4)
    bank = 30 * torch.randn(8, 5, generator=generator)
    spread = torch.randn(5, 5, generator=generator)
    images = [bank[torch.arange(400) % 8] + torch.randn(400, 5, generator=generator) @ spread for _ in range(3)]
    change = whitening(iter(images), bank)

    rest = []  # the same, slowly: descriptor by descriptor
    for descriptor in torch.cat(images).double().numpy():
        rest.append(descriptor - min(bank.double().numpy(), key=lambda centroid: np.sum((descriptor - centroid) ** 2)))
    covariance = np.mean([np.outer(one, one) for one in rest], axis=0)
    mean_variance = np.trace(covariance) / 5
    inverse = np.linalg.inv((covariance / mean_variance + np.eye(5)) / 2)
    for descriptor in images[0][:20]:
        found = (descriptor @ change.T - bank @ change.T).norm(dim=1)
        expected = [mahalanobis(descriptor, centroid, inverse) for centroid in bank.numpy()]
        np.testing.assert_allclose(found, expected, rtol=2e-3)  # the map is rounded


@pytest.mark.parametrize("image", [torch.ones(9, 4), torch.full((9, 4), torch.nan)], ids=["alike", "NaN"])
def test_nothing_is_whitened_where_there_is_no_spread_to_tell(image):
    assert (whitening([image], torch.ones(3, 4)) == torch.eye(4)).all()


def test_whitening_does_not_depend_on_the_number_of_threads():
    generator, before = torch.Generator().manual_seed(5), torch.get_num_threads()
    image, bank = torch.randn(5000, 300, generator=generator), torch.randn(50, 300, generator=generator)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(whitening([image], bank))
    torch.set_num_threads(before)
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


def test_kmeans_bank_finds_the_clusters_of_all_images():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 8, generator=generator) * 10
    images = [centres[torch.arange(60) % 6] + 0.1 * torch.randn(60, 8, generator=generator) for _ in range(3)]
    bank = kmeans_bank(lambda: images, len(images), clusters=100, seed=0)
    assert bank.shape == (100, 8)
    everything = torch.cat(images)
    # Each centroid is the mean of what is nearest to it, up to the last iteration's moves.
    distances = torch.cdist(everything, bank).min(1).values
    assert distances.max() < 0.6
    assert (torch.cdist(bank, centres).argmin(1).bincount(minlength=6) > 5).all()


def test_compressing_a_bank_gives_the_clusters_means():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 8, generator=generator) * 10
    bank = (centres[:, None] + 0.1 * torch.randn(6, 4, 8, generator=generator)).reshape(24, 8)
    compressed = compress(bank, 6, seed=0)
    assert compressed.shape == (6, 8)
    means = bank.reshape(6, 4, 8).mean(1)
    nearest = torch.cdist(compressed, means).argmin(1)
    assert sorted(nearest.tolist()) == list(range(6))
    close(compressed, means[nearest])
    assert compress(bank, 24, seed=0) is bank


def test_position_score_is_the_first_softmin_weight_times_the_first_distance():
    squared = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0)).sort(dim=-1).values * 9
    for distances, score in zip(squared.sqrt().view(-1, 3).tolist(), position_scores(squared).flatten(), strict=True):
        weights = [math.exp(-d) for d in distances]
        assert score.item() == pytest.approx(weights[0] / sum(weights) * distances[0], rel=1e-5)
    assert position_scores(torch.tensor([[4.0]])).tolist() == [2.0]


def test_the_baseline_is_the_root_of_the_smoothed_mean_drawn_to_one():
    scores = torch.rand(9, 8, 11, generator=torch.Generator().manual_seed(0)).double() + torch.arange(8)[:, None]
    pattern = gaussian_filter(scores.numpy().mean(0), 2.0)
    close(position_baseline(9, scores.sum(0)), np.sqrt((9 * pattern / pattern.mean() + 8) / (9 + 8)))


def test_the_baseline_is_never_nothing():
    nothing = torch.zeros(40, 40)
    assert (position_baseline(0, nothing) == 1).all()
    assert (position_baseline(5, nothing) == 1).all()
    half = nothing.clone()
    half[:20] = 1e6
    assert float(position_baseline(1_000_000, half).min()) == pytest.approx(0.05**0.5)


@pytest.mark.parametrize(("grid", "size"), [((7, 7), (28, 28)), ((4, 10), (32, 80)), ((12, 3), (50, 13))])
@pytest.mark.parametrize("sigma", [4.0, 1.5, 0.0])
@pytest.mark.parametrize("block", [scoremap.BLOCK, 11])
def test_score_map_is_upsampled_and_smoothed(monkeypatch, grid, size, sigma, block):
    monkeypatch.setattr(scoremap, "BLOCK", block)
    scores = torch.rand(2, *grid, generator=torch.Generator().manual_seed(0))
    maps = ScoreMap(grid, size, sigma)(scores)
    large = plain_bilinear(scores.double()[:, None], *size)[:, 0].numpy()
    expected = np.stack([gaussian_filter(m, sigma) for m in large])
    close(maps, expected)
    close(image_scores(maps), expected.max(axis=(1, 2)))


@pytest.mark.parametrize(
    ("name", "channels", "total"),
    [
        ("resnet18", (64, 128, 256), 448),
        ("wide_resnet50_2", (256, 512, 1024), 1792),
        ("vgg19_bn", (256, 512, 512), 1280),
        ("efficientnet_b5", (40, 64, 176), 280),
    ],
)
def test_named_backbones_have_the_papers_channels(name, channels, total):
    backbone = Backbone(name)
    assert backbone.channels == channels
    assert sum(channels) == total
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16), strict=True)
    ]
    assert is_efficientnet(name) == (name == "efficientnet_b5")
    assert descriptor_channels(name, channels, 2) == (280 if name == "efficientnet_b5" else total // 2)


def test_the_resnets_maps_are_those_of_its_layers():
    """Against torchvision's own resnet18 with the same weights."""
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    reference = resnet18().eval()
    backbone = Backbone("resnet18", None, reference.state_dict())
    image = torch.randn(1, 3, 64, 64)
    layers = ["layer1", "layer2", "layer3"]
    assert backbone.layers == tuple(layers)
    with torch.no_grad():
        expected = create_feature_extractor(reference, layers)(image)
        for actual, layer in zip(backbone(image), layers, strict=True):
            close(actual, expected[layer])


def test_any_timm_model_with_feature_maps_serves():
    assert Backbone("convnext_atto").channels == (40, 80, 160)
    assert len(Backbone("vit_tiny_patch16_224").channels) == 3
    assert Backbone("resnet18", ["layer2", "16"]).layers == ("layer2", "layer3")


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_the_whole_network_against_the_plain_steps(size):
    torch.manual_seed(3)
    backbone = Backbone("resnet18")
    descriptor = Descriptor(backbone.channels, 32).requires_grad_(False)
    grid = (size[0] // 4, size[1] // 4)
    bank, baseline = torch.randn(60, 32), torch.rand(grid) + 0.5
    network = Network(backbone, descriptor, bank, baseline, size, neighbours=3, sigma=4.0).eval()
    images = torch.randn(2, 3, *size)
    scores, maps = network(images)

    levels = [plain_pool(m) for m in backbone(images)]
    for actual, expected in zip(extract_levels(backbone, images), levels, strict=True):
        close(actual, expected)
    points = plain_descriptors(levels, descriptor.weight.flatten(1), descriptor.bias)
    distances = plain_nearest(points.flatten(0, 2), bank, 3)[0].sqrt()
    weights = torch.exp(-distances)
    positions = (weights[:, 0] / weights.sum(1) * distances[:, 0]).view(2, *grid) / baseline
    large = plain_bilinear(positions[:, None], *size)[:, 0].numpy()
    expected_maps = np.stack([gaussian_filter(m, 4.0) for m in large])
    close(maps, expected_maps)
    close(scores, expected_maps.max(axis=(1, 2)))
