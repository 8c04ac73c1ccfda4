"""Study what each part of the recipe brings, on all sets of DATA and several weights; write variants.md (--out).

    python examples/benchmarks/variants.py DATA --network resnet18=embedded --network tf_efficientnet_lite0=FILE \
        [--every 2] [--seeds 3] [--rows TITLE ...]

DATA is a folder of categories in MVTec's layout. Each row changes one thing of the default; each is fitted on good
images alone and measured on the test images. Feature maps are extracted once for each set, network and size, and kept
in --work with the finished runs, which are not run again. `--network random` is an untrained resnet18; networks joined
by + give their maps together. The choice among the rows is judged by leaving each set out in turn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from measuring import random_weights
from runs import keep_run, open_runs
from torch import Tensor

from cfa_cli import FitConfig
from cfa_cli.atomic import atomic_path
from cfa_cli.data.category import Category
from cfa_cli.data.datasets import open_dataset
from cfa_cli.data.images import read_image
from cfa_cli.data.masks import read_mask
from cfa_cli.engine.backbone import load_backbone
from cfa_cli.engine.features import FeatureStore
from cfa_cli.engine.metrics import PixelMetrics, image_metrics
from cfa_cli.engine.reading import sample_sizes
from cfa_cli.engine.thresholds import split_holdout
from cfa_cli.engine.training import train_descriptor
from cfa_cli.geometry import auto_size, resize_map, to_input
from cfa_cli.model.bank import KMEANS_POINTS, draw, kmeans_bank, mean_bank, whitening
from cfa_cli.model.descriptor import Descriptor, describe, descriptor_channels, thinning, upsample
from cfa_cli.model.scoremap import ScoreMap, position_baseline
from cfa_cli.model.search import NeighbourSearch
from cfa_cli.model.tiles import extract_levels
from cfa_cli.records import Geometry


@dataclass(frozen=True)
class Recipe:
    """What a row computes. The first values are the default's."""

    side: int = 448  # px: the input has about side x side pixels, in the images' aspect
    levels: tuple[int, ...] = (0, 1, 2)  # of strides 4, 8 and 16
    stride: int = 8  # px of the input from one position to the next
    clusters: int = 6272  # at most
    clusters_a_position: int = 2  # also at most
    bank: str = "kmeans"
    epochs: int = 0
    gamma_d: int = 2
    neighbours: int = 1  # whose mean distance is the score
    balance: bool = False  # divide each level by its spread over good images
    axes: float | None = None  # project on the principal axes, each divided by its deviation; of the mean, added
    whiten: bool = True  # weigh directions by how far good descriptors lie from their centroids
    local: float = 0.0  # power of each centroid's own mean distance that scores are divided by
    normalize: bool = True  # divide by the position's baseline
    top: float = 0.0  # the image score is the mean of this share of the map's pixels; 0: the maximum
    sigma: float = 4.0  # px of the input
    light: bool = False  # bring each image to the same mean and deviation first
    flips: bool = False  # train on mirrored images, too
    jitter: bool = False  # train on each image a little moved and brighter or darker, too


DEFAULT = Recipe()
STRIDE_4 = replace(DEFAULT, stride=4, clusters=3136, clusters_a_position=1)
ROWS: dict[str, Recipe] = {
    "default": DEFAULT,
    "320 px (fast)": replace(DEFAULT, side=320),
    "384 px": replace(DEFAULT, side=384),
    "half as many clusters": replace(DEFAULT, clusters=3136, clusters_a_position=1),
    "twice as many clusters": replace(DEFAULT, clusters=12544, clusters_a_position=4),
    "stride 4, half as many clusters": STRIDE_4,
    "320 px, stride 4, half as many clusters": replace(STRIDE_4, side=320),
    "224 px, stride 4, half as many clusters, gamma_d 1, one epoch, not whitened (0.1)": replace(
        STRIDE_4, side=224, gamma_d=1, epochs=1, whiten=False
    ),
    "mean bank, five epochs": replace(STRIDE_4, bank="mean", epochs=5),
    "one epoch": replace(DEFAULT, epochs=1),
    "gamma_d 1": replace(DEFAULT, gamma_d=1),
    "not whitened": replace(DEFAULT, whiten=False),
    "no position baseline": replace(DEFAULT, normalize=False),
    "mean distance to 3 neighbours": replace(DEFAULT, neighbours=3),
    "levels balanced": replace(DEFAULT, balance=True),
    "levels balanced, principal axes whitened": replace(DEFAULT, balance=True, axes=0.1, whiten=False),
    "divided by the centroid's own spread": replace(DEFAULT, local=0.5),
    "strides 8 and 16": replace(DEFAULT, levels=(1, 2)),
    "smoothed with 2 px": replace(DEFAULT, sigma=2.0),
    "image score: mean of the top 1 %": replace(DEFAULT, top=0.01),
    "brightness and contrast made equal": replace(DEFAULT, light=True),
    "mirrored images as well": replace(DEFAULT, flips=True),
    "moved by 1 to 2 px and 5 % brighter or darker as well": replace(DEFAULT, jitter=True),
}
SMALL = 100  # test images: so few are never thinned, as their figures would be noise
METRICS = ("image_auroc", "pixel_auroc", "aupro")
Row = dict[str, float | None]
Found = dict[str, dict[str, dict[str, list[Row]]]]  # network, row's title, set: a row a seed


class Maps:
    """A set's feature maps under some networks: [(n, h_l, w_l, C_l)] float16 by level, for good and for test images."""

    def __init__(self, train: list[Tensor], test: list[Tensor], size: tuple[int, int], backbone: str) -> None:
        self.train, self.test, self.size, self.backbone = train, test, size, backbone


def extract(network: str, category: Category, recipe: Recipe, every: int, work: Path) -> Maps:
    """Extract a set's maps, or take those of an earlier run."""
    parts = []
    for one in network.split("+"):
        kind = f"{recipe.side}{'-light' * recipe.light}{'-flips' * recipe.flips}{'-jitter' * recipe.jitter}-{every}"
        kept = work / "maps" / f"{_short(one)}-{category.name}-{kind}.pt"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(kept) as temporary:
                torch.save(_extract(one, category, recipe, every, work), temporary)
        parts.append(torch.load(kept, mmap=True, weights_only=True))
    joined = {key: [level for part in parts for level in part[key]] for key in ("train", "test")}
    order = sorted(range(len(joined["train"])), key=lambda index: -joined["train"][index].shape[1])
    strides = sorted({level.shape[1] for level in joined["train"]}, reverse=True)
    wanted = {strides[index] for index in recipe.levels}
    picked = [index for index in order if joined["train"][index].shape[1] in wanted]
    train, test = ([joined[key][index] for index in picked] for key in ("train", "test"))
    backbone = "+".join(network_config(one, work).backbone for one in network.split("+"))
    return Maps(train, test, tuple(parts[0]["size"]), backbone)


def _extract(network: str, category: Category, recipe: Recipe, every: int, work: Path) -> dict[str, Any]:
    config = network_config(network, work)
    backbone, _ = load_backbone(replace(config, stride=1), print)  # rows thin the maps themselves
    backbone.to(torch.bfloat16).to(memory_format=torch.channels_last)
    good, test = list(category.train[::every]), [image.path for image in category.test[::every]]
    size = auto_size(sample_sizes(good), (min(224, recipe.side) ** 2, recipe.side**2))
    geometry = Geometry(size, None, backbone.mean, backbone.std)

    zero = to_input(np.zeros((*size, 3), np.uint8), geometry)  # black, normalised

    def maps(paths: Sequence[Path], flips: bool = False, jitter: bool = False) -> list[Tensor]:
        rows = []
        for path in paths:
            image = read_image(path)
            x = to_input(image, geometry)
            if recipe.light:
                x = (x - x.mean()) / x.std().clamp_min(0.05)
            views = [x, *([x.flip(2)] if flips else [])]
            if jitter:
                views += [zero + by * (x.roll(way, (1, 2)) - zero) for by, way in ((1.05, (2, -1)), (0.95, (-1, 2)))]
            with torch.inference_mode():
                levels = extract_levels(backbone, torch.stack(views).contiguous(memory_format=torch.channels_last))
            rows.append([level.permute(0, 2, 3, 1).half() for level in levels])
        return [torch.cat(level) for level in zip(*rows, strict=True)]

    return {"size": size, "train": maps(good, recipe.flips, recipe.jitter), "test": maps(test)}


def network_config(network: str, work: Path) -> FitConfig:
    """Return a configuration with the network's backbone and weights: NAME=FILE, NAME=embedded, or random."""
    if network == "random":
        return FitConfig(weights=random_weights(work))
    name, _, weights = network.partition("=")
    return FitConfig(backbone=name, weights=weights)


def measure(maps: Maps, category: Category, recipe: Recipe, seed: int, every: int) -> Row:
    """Fit a recipe on a set's good maps and measure it on its test maps."""
    test = category.test[::every]
    views = 1 + recipe.flips + 2 * recipe.jitter
    members, held = split_holdout(len(maps.train[0]) // views, FitConfig().holdout, seed)
    members = [view for index in members for view in range(views * index, views * index + views)]
    held = [views * index for index in held]
    model = Model(maps, members, recipe, seed)
    good = torch.stack([model.distances(maps.train, index) for index in held])
    baseline = position_baseline(len(held), good.double().sum(0)) if recipe.normalize else torch.ones_like(good[0])
    to_map = ScoreMap(model.grid, maps.size, recipe.sigma)
    geometry = Geometry(maps.size, None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    scores, pixels = [], PixelMetrics()
    for index, image in enumerate(test):
        score_map = to_map((model.distances(maps.test, index) / baseline)[None])[0].numpy()
        highest = np.sort(score_map, axis=None)[-max(1, int(recipe.top * score_map.size)) :]
        scores.append(float(highest.mean()))
        if category.has_masks:
            mask = read_mask(image.mask) if image.mask else np.zeros(read_image(image.path).shape[:2], np.uint8)
            pixels.update(resize_map(score_map, geometry, mask.shape), mask)
    curves = pixels.compute()
    auroc = image_metrics(scores, [image.anomalous for image in test]).auroc
    return {"image_auroc": auroc, "pixel_auroc": curves.auroc, "aupro": curves.aupro}


class Model:
    """What a recipe learns from good maps: scales, descriptor, bank."""

    def __init__(self, maps: Maps, members: list[int], recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self.steps = [thinning(maps.size[0], level.shape[1], recipe.stride) for level in maps.train]
        self.grid = (-(-maps.train[0].shape[1] // self.steps[0]), -(-maps.train[0].shape[2] // self.steps[0]))
        self.scales = [1.0 for _ in maps.train]
        if recipe.balance:
            sample = members[:: max(1, len(members) // 16)]
            spreads = [torch.cat([level[index].float().flatten(0, 1) for index in sample]) for level in maps.train]
            self.scales = [float((x - x.mean(0)).square().sum(1).mean().rsqrt()) for x in spreads]
        channels = [level.shape[3] for level in maps.train]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            descriptor = Descriptor(channels, descriptor_channels(maps.backbone, channels, recipe.gamma_d))
        if recipe.axes is not None:
            self._project(descriptor, maps, members, seed)
        self._take(descriptor)
        clusters = min(recipe.clusters, recipe.clusters_a_position * self.grid[0] * self.grid[1])
        bank = (
            kmeans_bank(lambda: self._all(maps.train, members), len(members), clusters, seed)
            if recipe.bank == "kmeans"
            else mean_bank(self._all(maps.train, members))
        )
        if recipe.epochs:
            config = FitConfig(epochs=recipe.epochs, seed=seed)
            shapes = [tuple(level.shape[1:]) for level in self._levels(maps.train, 0)]
            store = FeatureStore(shapes, len(maps.train[0]))
            with store:
                for index in range(len(maps.train[0])):
                    store.append(self._levels(maps.train, index))
                train_descriptor(store, members, descriptor, bank, config, lambda epoch, done, loss: None)
            self._take(descriptor)
        if recipe.whiten:
            generator = torch.Generator().manual_seed(seed)
            drawn = draw(self._all(maps.train, members), len(members), KMEANS_POINTS * len(bank), generator)
            change = whitening(drawn, bank)
            descriptor.weight.data = (change @ descriptor.weight.data.flatten(1))[..., None, None]
            descriptor.bias.data = change @ descriptor.bias.data
            bank = bank @ change.T
        self.search = NeighbourSearch(bank)
        self._take(descriptor, in_frame=True)
        self.local = self._spreads(maps, members, len(bank)) if recipe.local else None

    def _take(self, descriptor: Descriptor, in_frame: bool = False) -> None:
        weight, bias = (
            descriptor.in_frame(self.search.frame) if in_frame else (descriptor.weight.flatten(1), descriptor.bias)
        )
        self.weight, self.bias = weight.detach(), bias.detach()

    def _levels(self, levels: list[Tensor], index: int) -> list[Tensor]:
        return [
            level[index : index + 1, ::step, ::step].float().permute(0, 3, 1, 2) * scale
            for level, step, scale in zip(levels, self.steps, self.scales, strict=True)
        ]

    def _describe(self, levels: list[Tensor], index: int) -> Tensor:
        with torch.inference_mode():
            return describe(self._levels(levels, index), self.weight, self.bias).flatten(0, 2)

    def _all(self, levels: list[Tensor], members: list[int]) -> Iterator[Tensor]:
        return (self._describe(levels, index).clone() for index in members)

    def _project(self, descriptor: Descriptor, maps: Maps, members: list[int], seed: int) -> None:
        draw, drawn = torch.Generator().manual_seed(seed), []
        for index in members[:: max(1, len(members) // 64)]:
            levels = [level.permute(0, 2, 3, 1) for level in self._levels(maps.train, index)]
            x = torch.cat([levels[0], *(upsample(level, self.grid) for level in levels[1:])], -1).flatten(0, 2)
            drawn.append(x[torch.randperm(len(x), generator=draw)[:400]])
        x = torch.cat(drawn).double()
        x = x - x.mean(0)
        variances, axes = torch.linalg.eigh(x.T @ x / len(x))
        assert self.recipe.axes is not None
        gains = (variances.clamp_min(0) + self.recipe.axes * variances.mean()).rsqrt()
        weight = torch.cat([gains[:, None] * axes.T, axes.new_zeros(len(axes), 2)], 1)
        descriptor.weight.data, descriptor.bias.data = weight.float()[..., None, None], torch.zeros(len(axes))

    def _spreads(self, maps: Maps, members: list[int], clusters: int) -> Tensor:
        """Each centroid's mean distance to the patches that are nearest to it, over the average, to the power."""
        total, count = torch.zeros(clusters), torch.zeros(clusters)
        for index in members:
            squared, nearest = self.search(self._describe(maps.train, index)[::7], 1)
            total.index_add_(0, nearest[:, 0], squared[:, 0].clamp_min(0).sqrt())
            count.index_add_(0, nearest[:, 0], torch.ones(len(nearest)))
        mean = total.sum() / count.sum()
        return ((total + 8 * mean) / (count + 8) / mean).pow(self.recipe.local)

    def distances(self, levels: list[Tensor], index: int) -> Tensor:
        """Score an image's positions: (h, w)."""
        squared, nearest = self.search(self._describe(levels, index), self.recipe.neighbours)
        found = squared.clamp_min(0).sqrt()
        if self.local is not None:
            found = found / self.local[nearest]
        return found.mean(1).view(self.grid)


def main() -> None:
    """Do all runs that are not done, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--network", action="append", help="NAME=embedded, NAME=FILE, random, or two joined by +")
    parser.add_argument("--rows", action="append", help="titles of the rows to run; all without it")
    parser.add_argument("--category", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help=f"take every n-th image of sets of more than {SMALL}")
    parser.add_argument("--work", type=Path, default=Path("variants-work"))
    parser.add_argument("--out", type=Path, default=Path("variants.md"))
    options = parser.parse_args()
    runs: dict[str, Row] = open_runs(options.work)
    categories = open_dataset(str(options.data), None, options.category).categories
    networks, titles = options.network or ["resnet18=embedded"], options.rows or list(ROWS)
    found: Found = {network: {title: {c.name: [] for c in categories} for title in titles} for network in networks}
    for seed in range(options.seeds):
        for network in networks:
            for title in titles:
                # Maps of two networks only go together with the same say.
                recipe = replace(ROWS[title], balance=True) if "+" in network else ROWS[title]
                for category in categories:
                    facts, every = json.dumps(asdict(recipe)), options.every if len(category.test) > SMALL else 1
                    key = " | ".join((_short(network), facts, category.name, str(seed), str(every)))
                    if key not in runs:
                        maps = extract(network, category, recipe, every, options.work)
                        keep_run(options.work, runs, key, measure(maps, category, recipe, seed, every))
                    found[network][title][category.name].append(runs[key])
    with atomic_path(options.out) as temporary:
        temporary.write_text(write(found, options.every))
    print(json.dumps({"out": str(options.out), "runs": len(runs)}))


def write(found: Found, every: int) -> str:
    """Write a table for each network, and what leaving each set out would have chosen."""
    thinned = f"Every {every}. image of each list of sets with more than {SMALL} test images, all of the others."
    lines = [thinned if every > 1 else "All images.", ""]
    names = list(next(iter(next(iter(found.values())).values())))
    for network, rows in found.items():
        lines += [f"## {_short(network)}", "", f"| | mean | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
        for title, sets in rows.items():
            means = [[_mean(runs, metric) for runs in sets.values()] for metric in METRICS]
            cells = [_cell(runs) for runs in sets.values()]
            lines.append(
                f"| {title} | **{' / '.join(_text(_average(values)) for values in means)}** | {' | '.join(cells)} |"
            )
        lines.append("")
    if len(names) == 1:
        return "\n".join(lines)
    heads = [f"{_short(network)}: chosen, default" for network in found]
    lines += ["## Leaving one set out", "", f"| left out | chosen on the others | {' | '.join(heads)} |"]
    lines.append("|---" * (len(found) + 2) + "|")
    titles = list(next(iter(found.values())))
    for left in names:
        merits = {
            title: fmean(_merit(found[network][title][name]) for network in found for name in names if name != left)
            for title in titles
        }
        best = max(titles, key=lambda title: merits[title])
        cells = [f"{_cell(rows[best][left])}, {_cell(rows[titles[0]][left])}" for rows in found.values()]
        lines.append(f"| {left} | {best} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _merit(runs: list[Row]) -> float:
    """What is chosen by: the mean of image AUROC and AUPRO."""
    values = [_mean(runs, metric) for metric in ("image_auroc", "aupro")]
    return fmean(value for value in values if value is not None)


def _mean(runs: list[Row], metric: str) -> float | None:
    return _average([run[metric] for run in runs])


def _average(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def _cell(runs: list[Row]) -> str:
    """Image AUROC (± its deviation over seeds) / AUPRO."""
    images = [run["image_auroc"] or 0.0 for run in runs]
    spread = f" ± {stdev(images):.3f}" if len(images) > 1 else ""
    return f"{fmean(images):.3f}{spread} / {_text(_mean(runs, 'aupro'))}"


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _short(network: str) -> str:
    """Name a network without its folder: resnet18=embedded, tf_efficientnet_lite0=lite0.safetensors."""
    return "+".join("=".join(Path(word).name for word in one.split("=")) for one in network.split("+"))


if __name__ == "__main__":
    main()
