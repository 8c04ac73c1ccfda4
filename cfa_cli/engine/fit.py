"""The verb `fit`: good images in, a model out."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor

from cfa_cli import __version__
from cfa_cli.config import FitConfig
from cfa_cli.data.images import read_image
from cfa_cli.data.inputs import find_good_images
from cfa_cli.engine.bank import build_bank, leave_one_out_baselines, score_positions
from cfa_cli.engine.calibrate import calibrate
from cfa_cli.engine.features import FeatureStore
from cfa_cli.engine.reading import read_ahead
from cfa_cli.engine.scorer import BATCH_SIZE
from cfa_cli.engine.training import train_descriptor
from cfa_cli.engine.workers import Workers
from cfa_cli.errors import ImageError, InputError, UsageError
from cfa_cli.geometry import to_input
from cfa_cli.model.backbone import Backbone, check_backbone_name
from cfa_cli.model.descriptor import Descriptor, descriptor_channels
from cfa_cli.model.device import backbone_dtype, choose_device
from cfa_cli.model.network import extract_levels
from cfa_cli.model.scoremap import ScoreMap
from cfa_cli.records import BackboneInfo, Bundle, FitResult, Geometry, Progress, ProgressCallback, Provenance, Source
from cfa_cli.weights.loading import load_weights

FEW_IMAGES = 20
AUTO_PIXELS = 224 * 224
AUTO_MULTIPLE = 16  # px: the coarsest stride
AUTO_SAMPLE = 32  # images whose aspect decides


def fit(
    good: str | Path | Sequence[Path],
    config: FitConfig | None = None,
    *,
    progress: ProgressCallback = lambda step: None,
    notify: Callable[[str], None] = lambda note: None,
) -> FitResult:
    """Train and calibrate a model on good images: a folder (searched recursively), or a list of files.

    Some of the images, chosen by the seed, are held out from training and calibrate the thresholds. `progress` is
    called with each step, `notify` with one-line notes. Nothing is written.

    Raises InputError for a folder without images and for fewer than 2 usable ones, UsageError for options that do not
    fit together, WeightsError and DeviceError.
    """
    start = time.perf_counter()
    config = config or FitConfig()
    folder, paths = None, []
    if isinstance(good, str | Path):
        folder = Path(good)
        paths = find_good_images(folder)
    else:
        paths = list(good)
    if len(paths) < 2:
        raise InputError(
            f"At least 2 good images are needed; found {len(paths)}.", "Give a folder with 20 or more good images."
        )
    device = choose_device(config.device)
    dtype = backbone_dtype(config.precision, device)
    backbone, backbone_info = load_backbone(config, notify)
    # The bundle keeps the weights as they came; the backbone may compute in a shorter type.
    tensors = {f"backbone.{name}": tensor.numpy().copy() for name, tensor in backbone.weights().items()}
    backbone.to(device, dtype).to(memory_format=torch.channels_last)
    geometry = Geometry(config.size or _auto_size(paths), config.crop, backbone.mean, backbone.std)

    sources = [Source(path, path.name) for path in paths]
    shapes = _level_shapes(backbone, geometry, device)
    grid = shapes[0][1], shapes[0][2]
    centroids = grid[0] * grid[1] // config.gamma_c
    if centroids < (needed := max(2 * config.neighbours, config.score_neighbours)):
        raise UsageError(
            f"The memory bank would have {centroids} centroids; at least {needed} are needed.",
            "Choose a larger --size or a smaller --gamma-c.",
        )
    with FeatureStore(shapes, len(paths)) as store:
        usable, skipped = _read_features(store, backbone, sources, geometry, device, progress)
        if len(usable) < 2:
            raise InputError(
                f"Only {len(usable)} of {len(paths)} images can be used; at least 2 are needed.",
                f"The first that cannot: {skipped[0][1]}",
            )
        train, holdout = split_holdout(len(usable), config.holdout, config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            descriptor = Descriptor(
                backbone.channels, descriptor_channels(config.backbone, backbone.channels, config.gamma_d)
            ).to(device)
        bank = build_bank(store, train, descriptor, config, progress)

        def on_batch(epoch: int, done: int, loss: float) -> None:
            total, position = config.epochs * len(train), (epoch - 1) * len(train) + done
            progress(Progress("training", position, total, loss=loss, epoch=epoch, epochs=config.epochs))

        losses, radius = train_descriptor(store, train, descriptor, bank, config, on_batch)
        descriptor.requires_grad_(False)
        positions = score_positions(store, holdout, descriptor, bank, config, progress)

    baseline, *baselines_without = leave_one_out_baselines(positions, config.normalize_positions)
    score_map = ScoreMap(grid, geometry.input_size, config.sigma)
    maps = [score_map(own / others).numpy() for own, others in zip(positions, baselines_without, strict=True)]
    scores = [float(each.max()) for each in maps]
    if not all(map(math.isfinite, (*losses, *scores))) or not bool(descriptor.weight.isfinite().all()):
        raise UsageError(
            f"The training diverged with --lr {config.lr:g}.", "Choose a smaller --lr; the paper's is 0.001."
        )
    tensors |= {
        "descriptor.weight": descriptor.weight.cpu().numpy(),
        "descriptor.bias": descriptor.bias.cpu().numpy(),
        "bank": bank.cpu().numpy(),
        "radius": radius.cpu().numpy(),
        "baseline": baseline.numpy(),
    }
    bundle = Bundle(
        config=config,
        geometry=geometry,
        grid=grid,
        backbone=backbone_info,
        calibration=calibrate(scores, maps, config.max_fpr),
        provenance=_provenance(folder, [source.path for source in usable], config.seed),
        tensors=tensors,
    )
    return FitResult(
        bundle=bundle,
        train_images=len(train),
        holdout_images=len(holdout),
        skipped=tuple(skipped),
        losses=tuple(losses),
        seconds=time.perf_counter() - start,
        warnings=tuple(_warnings(bundle, len(usable))),
    )


def split_holdout(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split `count` >= 2 images into those to train on and those held out, both ascending, at least one each."""
    held = min(count - 1, max(1, round(count * share)))
    order = np.random.default_rng(seed).permutation(count)
    return sorted(order[held:].tolist()), sorted(order[:held].tolist())


def load_backbone(config: FitConfig, notify: Callable[[str], None]) -> tuple[Backbone, BackboneInfo]:
    """Build the backbone with the weights that `config` names. Raises WeightsError, and UsageError for its layers."""
    check_backbone_name(config.backbone)
    weights = load_weights(config.weights, config.backbone, notify)
    with torch.random.fork_rng(devices=[]):  # timm draws weights first, which are replaced
        backbone = Backbone(config.backbone, config.layers, weights.state_dict)
    info = BackboneInfo(config.backbone, backbone.layers, weights.origin, weights.sha256, weights.warning)
    return backbone, info


def _auto_size(paths: Sequence[Path]) -> tuple[int, int]:
    """The median aspect of the images within 224² px, in multiples of the coarsest stride."""
    aspects = []
    for path in paths[:: -(-len(paths) // AUTO_SAMPLE)]:
        try:
            height, width = read_image(path).shape[:2]
        except ImageError:
            continue  # reported when all images are read
        aspects.append(height / width)
    aspect = float(np.clip(np.median(aspects) if aspects else 1.0, 1 / 8, 8))
    height = max(AUTO_MULTIPLE * 2, round((AUTO_PIXELS * aspect) ** 0.5 / AUTO_MULTIPLE) * AUTO_MULTIPLE)
    width = max(AUTO_MULTIPLE * 2, round((AUTO_PIXELS / aspect) ** 0.5 / AUTO_MULTIPLE) * AUTO_MULTIPLE)
    return height, width


def _level_shapes(backbone: Backbone, geometry: Geometry, device: torch.device) -> list[tuple[int, int, int]]:
    with torch.inference_mode():
        levels = extract_levels(backbone, torch.zeros(1, 3, *geometry.input_size, device=device))
    return [(level.shape[1], level.shape[2], level.shape[3]) for level in levels]


def _read_features(
    store: FeatureStore,
    backbone: Backbone,
    sources: Sequence[Source],
    geometry: Geometry,
    device: torch.device,
    progress: ProgressCallback,
) -> tuple[list[Source], list[tuple[str, str]]]:
    """Fill the store; return the sources that are in it, in its order, and the others with the reason."""
    usable: list[Source] = []
    skipped: list[tuple[str, str]] = []
    waiting: list[Tensor] = []

    def extract(images: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            return extract_levels(backbone, images.to(device).contiguous(memory_format=torch.channels_last))

    def flush() -> None:
        if waiting:
            for levels in workers.map(extract, workers.split(torch.stack(waiting))):
                store.append(levels)
            waiting.clear()

    stream = read_ahead(sources, lambda image: to_input(image, geometry), keep_images=False, ahead=2 * BATCH_SIZE)
    with Workers(device, BATCH_SIZE) as workers:
        for number, decoded in enumerate(stream, start=1):
            if decoded.input is None:
                skipped.append((str(decoded.source.path), decoded.error or ""))
            else:
                usable.append(decoded.source)
                waiting.append(decoded.input)
            if len(waiting) == BATCH_SIZE:
                flush()
            progress(Progress("reading", number, len(sources)))
        flush()
    return usable, skipped


def _provenance(folder: Path | None, paths: Sequence[Path], seed: int) -> Provenance:
    digest = hashlib.sha256()
    for path in paths:
        name = path.relative_to(folder) if folder is not None else Path(path.name)
        digest.update(f"{name.as_posix()}\0{path.stat().st_size}\n".encode())
    # The day alone, so that the same fit gives the same bytes; SOURCE_DATE_EPOCH makes it hold on other days too.
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)
    return Provenance(
        cfa=__version__,
        torch=torch.__version__,
        timm=timm.__version__,
        python=platform.python_version(),
        date=f"{now:%Y-%m-%d}",
        images=len(paths),
        images_sha256=digest.hexdigest(),
        seed=seed,
    )


def _warnings(bundle: Bundle, images: int) -> Iterator[str]:
    if bundle.backbone.warning:
        yield bundle.backbone.warning
    if images < FEW_IMAGES:
        yield f"Only {images} images: the model has seen little variation. Give it {FEW_IMAGES} or more if you can."
    calibration = bundle.calibration
    if calibration.fpr_high > 2 * calibration.max_fpr:
        yield (
            f"The threshold rests on {len(calibration.holdout_scores)} held-out images: expect between "
            f"{calibration.fpr_low:.0%} and {calibration.fpr_high:.0%} of good images over it (aim: "
            f"{calibration.max_fpr:.0%})."
        )
