"""What tells a run's model from another one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from cfa_cli.records import Bundle


def model_digests(bundle: Bundle) -> tuple[str, str]:
    """The digests by which runs know the model: the present one, and the one that version 0.1 wrote."""
    return _digest(bundle), _digest_of_format_1(bundle)


def digests_of(bundles: Mapping[str, Bundle]) -> tuple[str, ...]:
    """The same for several models, by name."""
    if len(bundles) == 1 and "" in bundles:
        return model_digests(bundles[""])
    told = [f"{name}\0{_digest(bundle)}" for name, bundle in sorted(bundles.items())]
    return (hashlib.sha256("\n".join(told).encode()).hexdigest(),)


def _digest(bundle: Bundle) -> str:
    """Tell models, and one model's thresholds, apart. What has its default is left out: later versions add fields."""
    records = (bundle.geometry, bundle.backbone, bundle.calibration, bundle.provenance)
    told = [
        {
            field.name: getattr(record, field.name)
            for field in dataclasses.fields(record)
            if getattr(record, field.name) != field.default
        }
        for record in records
    ]
    return _hash(told, bundle)


def _digest_of_format_1(bundle: Bundle) -> str:
    """The digest that version 0.1 wrote, for its runs to be taken up: of its records' fields, in its order."""
    config = [*_CONFIG_OF_FORMAT_1.split()]
    told = [{name: getattr(bundle.config, _RENAMED.get(name, name)) for name in config}]
    gamma_c = bundle.config.gamma_c
    told[0]["gamma_c"] = int(gamma_c) if gamma_c and gamma_c.is_integer() else gamma_c  # it was a whole number
    for record, names in (
        (bundle.geometry, "size crop mean std"),
        (bundle.backbone, "name layers weights sha256 warning"),
        (
            bundle.calibration,
            "max_fpr threshold pixel_threshold display_low display_high fpr_low fpr_high holdout_scores holdout_peaks",
        ),
        (bundle.provenance, "cfa torch timm python date images images_sha256 seed"),
    ):
        told.append({name: getattr(record, name) for name in names.split()})
    return _hash(told, bundle)


_CONFIG_OF_FORMAT_1 = (
    "backbone layers weights size crop bank gamma_c gamma_d neighbours score_neighbours relative epochs batch_size lr "
    "weight_decay sigma holdout max_fpr seed device precision"
)
_RENAMED = {"relative": "normalize_positions"}


def _hash(records: list[dict[str, Any]], bundle: Bundle) -> str:
    digest = hashlib.sha256(json.dumps(records).encode())
    for name in sorted({"bank", "descriptor.weight"} & set(bundle.tensors)):  # an exported model shows no tensors
        digest.update(np.ascontiguousarray(bundle.tensors[name]).tobytes())
    return digest.hexdigest()
