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
    from torch import Tensor

    from cfa_cli.engine.ignore import Ignore
    from cfa_cli.engine.model import Model
    from cfa_cli.engine.scorer import Scorer
    from cfa_cli.model.views import View

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
    """Score them, good ones in each view that the model has learned; `ignore` takes the place of what it ignores.

    Raises InputError if none of the good ones, or none of the defects, can be read.
    """
    import torch

    from cfa_cli.engine.scorer import score_sources
    from cfa_cli.model.views import views_of

    found, done, bundle = ScoredImages(), 0, model.bundle
    own = torch.from_numpy(bundle.tensors["keep"]) if "keep" in bundle.tensors and ignore is None else None
    common = own if ignore is None else ignore.common
    views = views_of(bundle.config.augment, bundle.geometry)
    scorers = [_ScorerOfView(model.scorer, view, own, common) for view in views]

    def score(sources: Sequence[Source], scorers: Sequence[Scorer]) -> Iterator[tuple[Prediction, ...]]:
        nonlocal done
        runs = (
            score_sources(scorer, sources, bundle.calibration, max_pixels=max_pixels, ignore=ignore)
            for scorer in scorers
        )
        for each in zip(*runs, strict=True):
            done += 1
            progress(Progress("scoring", done, images.count))
            if failed := [one for one in each if one.score is None]:
                found.skipped.append((str(failed[0].source.path), failed[0].error or ""))
            else:
                yield each

    every = max(1, -(-len(images.good) * len(scorers) * math.prod(bundle.geometry.input_size) // PIXELS))
    for each in score(images.good, scorers):
        assert each[0].statistics is not None
        pixels = np.concatenate([scorer.kept(one) for scorer, one in zip(scorers, each, strict=True)])
        found.scores.append(max(one.score or 0.0 for one in each))  # as the fit did with held-out images
        found.maps.append(pixels if every == 1 else np.append(pixels[::every], pixels.max()))
        found.statistics.append(each[0].statistics)
        found.names.append(each[0].source.name)
    for kind, sources in images.defects.items():
        found.defects[kind] = [one.score or 0.0 for (one,) in score(sources, [model.scorer])]
    if (images.good and not found.scores) or (images.defects and not any(found.defects.values())):
        what = "good images" if images.good and not found.scores else "defects"
        raise InputError(f"None of the {what} can be read.", f"The first that cannot: {found.skipped[0][1]}")
    return found


class _ScorerOfView:
    """A scorer of a view of each image.

    own: (H, W), 0 on what the model itself ignores, and sees nothing of; None: nothing.
    common: (H, W), 0 on what is ignored of all images; None: of each something else, or nothing.
    """

    def __init__(self, scorer: Scorer, view: View, own: Tensor | None, common: Tensor | None) -> None:
        self._scorer, self._view, self._own, self._common = scorer, view, own, common
        self.geometry, self.training, self.warnings = scorer.geometry, scorer.training, scorer.warnings

    def prepare(self, image: np.ndarray) -> Tensor:
        """Turn an image into the input that shows the view: see `Scorer`."""
        prepared = self._scorer.prepare(image)
        return self._view.of(prepared if self._own is None else prepared * self._own)

    def __call__(self, inputs: Tensor, keep: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Score a batch of inputs: see `Scorer`. `keep` is of the images as they are."""
        keep = self._own if keep is None else keep
        if keep is None:
            return self._scorer(inputs)
        return self._scorer(inputs, self._view.of_kept(keep, self._common).expand(len(inputs), -1, -1))

    def kept(self, prediction: Prediction) -> np.ndarray:
        """Return the pixels of a prediction's map that are not ignored: others say nothing."""
        import torch

        assert prediction.score_map is not None
        keep = self._own if prediction.keep is None else torch.from_numpy(prediction.keep)
        if keep is None:
            return prediction.score_map.ravel()
        return prediction.score_map[self._view.of_kept(keep, self._common).numpy() > 0]


def _several(paths: PathLike | Sequence[PathLike]) -> list[PathLike]:
    return [paths] if isinstance(paths, str | Path) else list(paths)
