"""Devices, and the number formats that they multiply natively."""

from __future__ import annotations

from typing import Any

import torch

from cfa_cli.config import Precision, check_device_name
from cfa_cli.errors import DeviceError, UsageError
from cfa_cli.model.quantised import multiplies_bytes
from cfa_cli.records import NumberType


def choose_device(name: str) -> torch.device:
    """Return the device for auto | cpu | cuda | cuda:N | mps. Raises DeviceError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device_name(name)
    kind, _, index = name.partition(":")
    if not _is_there(kind, int(index or 0)):
        raise DeviceError(f"The device '{name}' is not there on this machine.", "Use --device auto or --device cpu.")
    return torch.device(name)


def _is_there(kind: str, index: int) -> bool:
    """Tell whether this machine has a device; no driver but its own is asked."""
    if kind == "cuda":
        return torch.cuda.is_available() and index < torch.cuda.device_count()
    return kind != "mps" or torch.backends.mps.is_available()


def number_type(precision: Precision, device: torch.device, quantisable: bool) -> NumberType:
    """Return what a backbone computes in; `auto` is the quickest that the device computes natively.

    quantisable: whether it can compute in int8.

    Raises UsageError for float16 on the CPU, and for int8 where it cannot.
    """
    if precision == "auto":
        if quantisable and multiplies_bytes(device):
            return "int8"
        return "bfloat16" if quick_bfloat16(device) else "float32"
    if precision == "float16" and device.type == "cpu":
        raise UsageError("float16 is for accelerators.", "Use --precision auto, float32 or bfloat16 on the CPU.")
    if precision == "int8" and not quantisable:
        raise UsageError(
            "int8 is for plain ResNets, such as resnet18, at strides 4, 8, 16 and 32, and for models that were "
            "fitted in it.",
            "Leave --precision out.",
        )
    return precision


def backbone_dtype(precision: NumberType) -> torch.dtype:
    """Return the type of a backbone's weights; those of int8 are made from float32."""
    return {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "int8": torch.float32,
    }[precision]


def quick_bfloat16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 sooner than float32: Intel's processors do with AMX alone."""
    if device.type != "cpu":
        return native_bfloat16(device)
    processor: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack it
    return native_bfloat16(device) and (processor.get("amx_bf16", True) or "Intel" not in processor.get("cpu_name", ""))


def native_bfloat16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 natively (on the CPU: AMX or AVX512-BF16)."""
    if device.type == "cpu":
        # torch has no public question for this; where its private ones are gone, float32 is right and only slower.
        asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(ask() for ask in asked if ask is not None)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
