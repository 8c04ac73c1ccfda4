"""Images whose verdict is known, good ones and defects by kind: found in folders, and scored for `calibrate`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cfa_cli.data.inputs import find_good_images, find_images, find_sources
from cfa_cli.errors import InputError
from cfa_cli.notes import LeftOut
from cfa_cli.records import ImageStatistics, Prediction, Progress, ProgressCallback, Source

if TYPE_CHECKING:  # what loads torch is imported once the images are found
    from cfa_cli.engine.ignore import Ignore
    from cfa_cli.engine.model import Model

PathLike = str | Path
PIXELS = 20_000_000  # of good maps that are kept; of more, each map gives fewer
GOOD = "good"  # the folder beside the kinds of defects, in MVTec's layout


@dataclass(frozen=True)
class LabelledImages:
    """Images by their verdict."""

    good: list[Source]
    defects: dict[str, list[Source]]  # by kind
    folder: Path | None  # that all good ones come from, if one was given
    left_out: LeftOut
    warnings: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.good) + sum(map(len, self.defects.values()))


@dataclass
class ScoredImages:
    """What is kept of them. An image that cannot be scored is in `skipped` alone."""

    scores: list[float] = field(default_factory=list)  # of good images
    maps: list[np.ndarray] = field(default_factory=list)  # pixels of each one's map, the highest among them
    statistics: list[ImageStatistics] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    defects: dict[str, list[float]] = field(default_factory=dict)  # scores by kind
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (path, reason)


def find_labelled(good: PathLike | Sequence[PathLike], defects: PathLike | Sequence[PathLike]) -> LabelledImages:
    """Find good images (files, folders or globs) and folders of defects, whose sub-folders are the kinds.

    Raises InputError where there are none, where a folder of good images is a data set with defects in it, and where
    an image is both.
    """
    named, roots, left_out = [str(one) for one in _several(good)], [Path(one) for one in _several(defects)], LeftOut()
    for text in named:
        if Path(text).is_dir():
            find_good_images(Path(text))
    sources = find_sources(named, left_out=left_out) if named else []
    kinds: dict[str, list[Source]] = {}
    for root in roots:
        for path in find_images(root, left_out):
            kind = path.relative_to(root).parts[0] if path.parent != root else root.resolve().name
            kinds.setdefault(kind, []).append(Source(path, path.name))
    warnings = []
    if len(kinds) > 1 and (beside := kinds.pop(GOOD, [])):
        warnings.append(f"Left out of the defects: {len(beside)} images in a folder called {GOOD}.")
    taken = {source.path.resolve() for source in sources}
    for source in (source for kind in kinds.values() for source in kind):
        if source.path.resolve() in taken:
            raise InputError(f"{source.path} is given as good and as a defect.", "Give it once.")
    folder = Path(named[0]) if len(named) == 1 and Path(named[0]).is_dir() else None
    return LabelledImages(sources, dict(sorted(kinds.items())), folder, left_out, tuple(warnings))


def score_labelled(
    model: Model, images: LabelledImages, max_pixels: float, progress: ProgressCallback, ignore: Ignore | None = None
) -> ScoredImages:
    """Score them; `ignore` takes the place of what the model ignores.

    Raises InputError if none of the good ones, or none of the defects, can be read.
    """
    from cfa_cli.engine.scorer import score_sources

    found, done = ScoredImages(), 0

    def score(sources: Sequence[Source]) -> Iterator[Prediction]:
        nonlocal done
        calibration = model.bundle.calibration
        for prediction in score_sources(model.scorer, sources, calibration, max_pixels=max_pixels, ignore=ignore):
            done += 1
            progress(Progress("scoring", done, images.count))
            if prediction.score is None:
                found.skipped.append((str(prediction.source.path), prediction.error or ""))
            else:
                yield prediction

    every = max(1, -(-len(images.good) * math.prod(model.bundle.geometry.input_size) // PIXELS))
    for prediction in score(images.good):
        assert prediction.score is not None
        assert prediction.score_map is not None
        assert prediction.statistics is not None
        # (H, W), 0 on what is ignored: its pixels say nothing
        keep = model.bundle.tensors.get("keep") if prediction.keep is None else prediction.keep
        pixels = prediction.score_map.ravel() if keep is None else prediction.score_map[keep > 0]
        found.scores.append(prediction.score)
        found.maps.append(pixels if every == 1 else np.append(pixels[::every], pixels.max()))
        found.statistics.append(prediction.statistics)
        found.names.append(prediction.source.name)
    for kind, sources in images.defects.items():
        found.defects[kind] = [prediction.score or 0.0 for prediction in score(sources)]
    if (images.good and not found.scores) or (images.defects and not any(found.defects.values())):
        what = "good images" if images.good and not found.scores else "defects"
        raise InputError(f"None of the {what} can be read.", f"The first that cannot: {found.skipped[0][1]}")
    return found


def _several(paths: PathLike | Sequence[PathLike]) -> list[PathLike]:
    return [paths] if isinstance(paths, str | Path) else list(paths)
