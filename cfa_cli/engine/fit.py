"""The verb `fit`: good images in, a model out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfa_cli.config import FitConfig, check_max_pixels
from cfa_cli.data.depth import recognise_depth
from cfa_cli.data.ignore import IgnoreMasks, find_ignore_masks
from cfa_cli.data.inputs import find_good_images
from cfa_cli.data.statistics import by_score, summarise
from cfa_cli.engine.backbone import load_backbone
from cfa_cli.engine.bank import build_bank, count_centroids, leave_one_out_baselines, resolve_gamma_c, score_positions
from cfa_cli.engine.features import FeatureStore, store_features
from cfa_cli.engine.ignore import Ignore, ignore_warnings, make_ignore
from cfa_cli.engine.kinds import kinds_warning
from cfa_cli.engine.provenance import path_below, record_provenance
from cfa_cli.engine.ranges import quantise
from cfa_cli.engine.reading import check_min_area, sample_sizes
from cfa_cli.engine.sampling import sample_by_folder
from cfa_cli.engine.thresholds import set_thresholds, split_holdout
from cfa_cli.engine.training import train_descriptor
from cfa_cli.engine.warnings import fit_warnings
from cfa_cli.engine.whitening import whiten
from cfa_cli.errors import InputError, UsageError
from cfa_cli.evidence import Calibration
from cfa_cli.geometry import AUTO_PIXELS, SMALL_PIXELS, auto_size, full_size
from cfa_cli.model.backbone import Backbone
from cfa_cli.model.descriptor import Descriptor, descriptor_channels
from cfa_cli.model.device import backbone_dtype, choose_device, number_type
from cfa_cli.model.joined import SCALES, AnyBackbone, JoinedBackbone
from cfa_cli.model.scoremap import ScoreMap, kept_positions
from cfa_cli.model.tiles import level_shapes
from cfa_cli.model.views import View, views_of
from cfa_cli.notes import LeftOut
from cfa_cli.records import MAX_PIXELS, Bundle, FitResult, Geometry, ImageStatistics, Progress, ProgressCallback, Source
from cfa_cli.results.regions import image_score

MAP_PIXELS = 512 * 512  # of each held-out map that thresholds are chosen from: a larger map is smooth between them


def fit(
    good: str | Path | Sequence[Path],
    config: FitConfig | None = None,
    *,
    ignore: str | Path | None = None,
    max_pixels: float = MAX_PIXELS,
    progress: ProgressCallback = lambda step: None,
    notify: Callable[[str], None] = lambda note: None,
) -> FitResult:
    """Train and calibrate a model on good images: a folder (searched recursively), or a list of files.

    Some of the images, chosen by the seed, are held out from training and calibrate the thresholds. Of more than
    `config.max_images` a sample of so many is drawn before any is read. `ignore` names what is not looked at: a mask
    (white is ignored) or polygons as JSON for all images, which the model keeps, or a folder of these by the images'
    names, which it does not. Files of more than `max_pixels` megapixels are left out. `progress` is called with each
    step, `notify` with one-line notes. Nothing is written.

    Raises InputError for a folder without images and for fewer than 2 usable ones, and where `ignore` does not fit the
    images or leaves nearly nothing; UsageError for options that do not fit together, WeightsError and DeviceError.
    """
    start = time.perf_counter()
    config = config or FitConfig()
    check_max_pixels(max_pixels)
    left_out = LeftOut()
    folder, found = _find(good, left_out)
    paths = sample_by_folder(found, config.max_images, config.seed)
    if len(paths) < len(found):
        notify(f"Of {len(found)} images {len(paths)} are drawn, by folder; --max-images takes more.")
    masks = None if ignore is None else find_ignore_masks(ignore, paths)
    check_min_area(config.min_area, paths, max_pixels)
    device = choose_device(config.device)
    number_type(config.precision, device, quantisable=True)  # what cannot be is said before weights are fetched
    backbone, backbone_info = load_backbone(config, notify)
    quantisable = isinstance(backbone, Backbone) and backbone.range_count > 0
    precision = number_type(config.precision, device, quantisable)
    # The bundle keeps the weights as they came; the backbone may compute in a shorter type.
    tensors = {f"backbone.{name}": tensor.numpy().copy() for name, tensor in backbone.weights().items()}
    backbone.to(device, backbone_dtype(precision)).to(memory_format=torch.channels_last)
    geometry, shapes, config = _resolve(paths, config, backbone, max_pixels)
    grid = shapes[0][1], shapes[0][2]
    ignored = None if masks is None else _ignore(masks, paths, geometry, grid, config, max_pixels)

    bit_depth = recognise_depth(paths, max_pixels)
    if 8 < bit_depth < 16:
        notify(f"The 16-bit files hold {bit_depth}-bit values: {2**bit_depth - 1} is white.")
    sources = [Source(path, path.name) for path in paths]
    views = views_of(config.augment, geometry)
    with FeatureStore(shapes, len(paths) * len(views)) as store:

        def fill(sources: Sequence[Source]) -> tuple[list[Source], list[tuple[str, str]], list[ImageStatistics]]:
            if precision == "int8" and isinstance(backbone, Backbone):
                train, _ = split_holdout(len(sources), config.holdout, config.seed)
                members = [sources[index] for index in train]
                tensors["ranges"] = quantise(backbone, members, geometry, device, bit_depth, max_pixels, ignored)
            store.clear()
            return store_features(
                store, backbone, sources, geometry, device, bit_depth, progress, max_pixels, ignored, views
            )

        usable, skipped, statistics = fill(sources)
        if skipped and precision == "int8" and len(usable) > 1:  # the hold-out is drawn from what can be read
            usable, _, statistics = fill(usable)
        _check_usable(usable, skipped)
        train, holdout = split_holdout(len(usable), config.holdout, config.seed)
        if isinstance(backbone, JoinedBackbone):
            backbone.scales.copy_(store.balance(_rows(train, len(views))))
            tensors[f"backbone.{SCALES}"] = backbone.scales.float().cpu().numpy()
        learned = _learn(store, _rows(train, len(views)), backbone.channels, device, config, progress)
        held = _rows(holdout, len(views))
        positions = score_positions(store, held, learned.descriptor, learned.bank, config, progress)
        kept = store.kept(held)
        mixed = kinds_warning(store.means()[:: len(views)].numpy(), [source.path for source in usable])

    keeps = [
        None if ignored is None else view.of_kept(ignored.keep(usable[index].path), ignored.common)
        for index in holdout
        for view in views
    ]
    score_map = ScoreMap(grid, geometry.input_size, config.sigma)
    sizes = [(statistics[index].height, statistics[index].width) for index in holdout]
    baseline, scores, calibration = _calibrate(
        positions, kept, keeps, sizes, views, score_map, learned, config, geometry
    )
    tensors |= learned.tensors() | {"baseline": baseline}
    if ignored is not None and ignored.common is not None:
        tensors["keep"] = ignored.common.numpy()
    bundle = Bundle(
        config=config,
        geometry=geometry,
        grid=grid,
        backbone=replace(backbone_info, precision=precision),
        calibration=calibration,
        provenance=record_provenance(
            folder, [source.path for source in usable], config.seed, len(found) if len(found) > len(paths) else None
        ),
        tensors=tensors,
        training=summarise(statistics, bit_depth),
        holdout=by_score(
            scores,
            [statistics[index] for index in holdout],
            [path_below(folder, usable[index].path) for index in holdout],
        ),
    )
    return FitResult(
        bundle=bundle,
        train_images=len(train),
        holdout_images=len(holdout),
        skipped=tuple(skipped),
        losses=tuple(learned.losses),
        seconds=time.perf_counter() - start,
        warnings=(
            *fit_warnings(bundle),
            *([mixed] if mixed else []),
            *([] if masks is None else ignore_warnings(masks, paths, kept=masks.files is None)),
        ),
        left_out=left_out,
    )


@dataclass(frozen=True)
class _Learned:
    """What the training images give."""

    descriptor: Descriptor
    bank: Tensor  # (M, D)
    radius: Tensor  # ()
    losses: list[float]  # mean loss of each epoch

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the bundle's tensors, under its names."""
        return {
            "descriptor.weight": self.descriptor.weight.cpu().numpy(),
            "descriptor.bias": self.descriptor.bias.cpu().numpy(),
            "bank": self.bank.cpu().numpy(),
            "radius": self.radius.cpu().numpy(),
        }


def _find(good: str | Path | Sequence[Path], left_out: LeftOut) -> tuple[Path | None, list[Path]]:
    """Return the folder, if one was given, and the images in it, or those of the list."""
    folder = None
    if isinstance(good, str | Path):
        folder = Path(good)
        paths = find_good_images(folder, left_out)
    else:
        paths = [Path(each) for each in good]
    if len(paths) < 2:
        raise InputError(
            f"At least 2 good images are needed; found {len(paths)}.", "Give a folder with 20 or more good images."
        )
    return folder, paths


def _rows(images: Sequence[int], views: int) -> list[int]:
    """Return where the store has the images' views."""
    return [image * views + view for image in images for view in range(views)]


def _resolve(
    paths: Sequence[Path], config: FitConfig, backbone: AnyBackbone, max_pixels: float
) -> tuple[Geometry, list[tuple[int, int, int]], FitConfig]:
    """Return the geometry, (C_l, h_l, w_l) of each feature map, and the configuration without anything automatic."""
    size = config.size
    if not isinstance(size, tuple):
        sizes, pixels = sample_sizes(paths, max_pixels), SMALL_PIXELS if size == "small" else AUTO_PIXELS
        size = full_size(sizes) if size == "full" and sizes else auto_size(sizes, pixels)
    geometry = Geometry(size, config.crop, backbone.mean, backbone.std)
    shapes = level_shapes(backbone, geometry.input_size)
    grid = shapes[0][1], shapes[0][2]
    config = replace(config, size=size, gamma_c=resolve_gamma_c(config, grid))
    _check_centroids(grid[0] * grid[1], grid, config)
    return geometry, shapes, config


def _ignore(
    masks: IgnoreMasks,
    paths: Sequence[Path],
    geometry: Geometry,
    grid: tuple[int, int],
    config: FitConfig,
    max_pixels: float,
) -> Ignore | None:
    """Return what is ignored; None if nothing is. Raises what is wrong with it before anything is trained."""
    sizes = sample_sizes(paths, max_pixels) if masks.files is None else []
    aspect = float(np.median([height / width for height, width in sizes])) if sizes else None
    ignore = make_ignore(masks, None if aspect is None else (aspect, aspect), geometry, grid)
    if ignore.common is None:
        return ignore
    _check_centroids(int(kept_positions(ignore.common[None], grid).sum()), grid, config)
    return None if bool(ignore.common.all()) else ignore


def _check_usable(usable: Sequence[Source], skipped: Sequence[tuple[str, str]]) -> None:
    """Raise InputError if fewer than 2 images could be read."""
    if len(usable) < 2:
        raise InputError(
            f"Only {len(usable)} of {len(usable) + len(skipped)} images can be used; at least 2 are needed.",
            f"The first that cannot: {skipped[0][1]}",
        )


def _check_centroids(positions: int, grid: tuple[int, int], config: FitConfig) -> None:
    """Raise UsageError if the memory bank would have fewer centroids than the loss and the score look at.

    positions: of the grid, those that are not ignored.
    """
    centroids = count_centroids(config, grid, positions)
    needed = max(2 * config.neighbours, config.score_neighbours)
    if centroids < needed:
        raise UsageError(
            f"The memory bank would have {centroids} centroids; at least {needed} are needed.",
            "Choose a larger --size or a smaller --gamma-c.",
        )


def _learn(
    store: FeatureStore,
    train: Sequence[int],
    channels: Sequence[int],
    device: torch.device,
    config: FitConfig,
    progress: ProgressCallback,
) -> _Learned:
    """Draw the descriptor, build the memory bank from its output, adapt it to the training images, and whiten both."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        descriptor = Descriptor(channels, descriptor_channels(config.backbone, channels, config.gamma_d)).to(device)
    bank = build_bank(store, train, descriptor, config, progress)

    def on_batch(epoch: int, done: int, loss: float) -> None:
        total, position = config.epochs * len(train), (epoch - 1) * len(train) + done
        progress(Progress("training", position, total, loss=loss, epoch=epoch, epochs=config.epochs))

    losses, radius = train_descriptor(store, train, descriptor, bank, config, on_batch)
    descriptor.requires_grad_(False)
    if config.whiten:
        bank = whiten(store, train, descriptor, bank, config.seed, progress)
    return _Learned(descriptor, bank, radius, losses)


def _thin(pixels: np.ndarray) -> np.ndarray:
    """Return a map's pixels (n,), of a large one evenly spread ones and the highest, so that many maps can be held."""
    pixels = pixels.ravel()
    return pixels if len(pixels) <= MAP_PIXELS else np.append(pixels[:: -(-len(pixels) // MAP_PIXELS)], pixels.max())


def _calibrate(
    positions: Tensor,
    kept: Tensor | None,
    keeps: Sequence[Tensor | None],
    sizes: Sequence[tuple[int, int]],
    views: Sequence[View],
    score_map: ScoreMap,
    learned: _Learned,
    config: FitConfig,
    geometry: Geometry,
) -> tuple[np.ndarray, list[float], Calibration]:
    """Return the baseline (h, w), the n images' scores and the thresholds, from position scores (n * views, h, w).

    `kept` (n * views, h, w) bool are the positions that are not ignored, `keeps` the same of each view's pixels, and
    `sizes` the images' (height, width) px. An image's score is that of its highest view: so the threshold holds for a
    good part whichever way it lies.
    Raises UsageError if the training diverged.
    """
    count = len(views)
    baseline, *baselines_without = leave_one_out_baselines(positions, config.normalize_positions, kept, count)
    maps, scores = [], []
    for image, (others, size) in enumerate(zip(baselines_without, sizes, strict=True)):
        pixels, highest = [], -math.inf
        for view, row in zip(views, range(image * count, (image + 1) * count), strict=True):
            relative, keep = positions[row] / others, keeps[row]
            whole = score_map(relative) if keep is None else score_map(relative[None], keep[None])[0]
            highest = max(highest, image_score(whole.numpy(), geometry, view.size_of(size), config.min_area))
            pixels.append(_thin((whole if keep is None else whole[keep > 0]).numpy()))
        scores.append(highest)
        maps.append(np.concatenate(pixels))
    if not all(map(math.isfinite, (*learned.losses, *scores))) or not bool(learned.descriptor.weight.isfinite().all()):
        raise UsageError(
            f"The training diverged with --lr {config.lr:g}.", "Choose a smaller --lr; the paper's is 0.001."
        )
    return baseline.numpy(), scores, set_thresholds(scores, maps, config.max_fpr, config.min_area)
