"""CFA's published figures, and which of them compare with a benchmark's.

A column stands beside ours only where data, backbone, weights, input size and crop are the same. What still differs is
named in its note.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from cfa_cli.config import Size
from cfa_cli.results.benchmark import Results

MVTEC = "MVTec AD"  # the one data set that CFA's published figures are of
_CODE_DIFFERS = (
    "they train on all good images and leave out a last batch that is not full, resize with Lanczos' filter where cfa "
    "takes the bilinear one with antialiasing, end their ResNets' levels in a leaky ReLU where cfa has the ReLU, and "
    "judge pixels at the input's size"
)


@dataclass(frozen=True)
class Column:
    """One column of published figures of a backbone."""

    heading: str
    size: Size  # (height, width) px that images were resized to
    crop: Size | None
    figures: dict[str, dict[str, float]]  # category, metric
    note: str  # where they come from, and what differs

    @property
    def options(self) -> str:
        """The options of cfa that give the same input."""
        return f"--size {self.size[0]}" + ("" if self.crop is None else f" --crop {self.crop[0]}")


def comparable(results: Results, backbone: str) -> list[Column]:
    """Return the published columns that compare with the figures of `backbone`."""
    if not _same_data_and_weights(results, backbone):
        return []
    return [column for column in _columns(backbone) if _same_input(results, backbone, column)]


def why_not_comparable(results: Results, backbone: str) -> str | None:
    """Say which published figures do not stand beside those of `backbone`, and why; None if all of them do."""
    if results.config is None:
        return None  # models that were given are compared with each other
    if results.dataset != MVTEC:
        return f"No published figures stand beside these: those of CFA are of {MVTEC}, these are of {results.dataset}."
    if not (columns := _columns(backbone)):
        return f"There are no published figures of CFA with {backbone} to stand beside these."
    if not _same_data_and_weights(results, backbone):
        return (
            f"No published figures stand beside those of {backbone}: theirs come from the ImageNet weights "
            f"({backbone}.tv_in1k), these from other ones ({results.weights(backbone)})."
        )
    left_out = [column for column in columns if not _same_input(results, backbone, column)]
    if not left_out:
        return None
    theirs = ", ".join(f"{column.heading} {column.options}" for column in left_out)
    return f"Published figures of {backbone} at other input sizes are left out ({theirs})."


def _same_data_and_weights(results: Results, backbone: str) -> bool:
    return (
        results.config is not None
        and results.dataset == MVTEC
        and results.weights(backbone) == f"imagenet: {backbone}.tv_in1k"
    )


def _same_input(results: Results, backbone: str, column: Column) -> bool:
    config, theirs = results.config, column.crop or column.size
    assert config is not None
    sizes = {each.input_size for each in results.evaluations if each.method == backbone}
    # A size that was chosen by the images' aspect is known from the evaluations alone.
    return config.crop == column.crop and (config.size or theirs) == column.size and sizes == {theirs}


def _columns(backbone: str) -> list[Column]:
    """All published columns of a backbone."""
    document = _document()
    found = []
    if backbone in document:
        source = f"anomalib: {document['source']}; it trains on all good images"
        found.append(Column("anomalib", (224, 224), None, document[backbone], f"{source}."))
    if authors := document.get(f"authors_{backbone}"):
        note = f"authors†: {authors['note']}; {_CODE_DIFFERS}."
        found += [
            Column("authors† (R)", (256, 256), None, authors["resize"], note),
            Column("authors† (R+C)", (256, 256), (224, 224), authors["resize_and_crop"], note),
        ]
    return found


@functools.cache
def _document() -> dict[str, Any]:
    text = files("cfa_cli.results").joinpath("published", "mvtec_cfa.json").read_text("utf-8")
    document: dict[str, Any] = json.loads(text)
    return document
