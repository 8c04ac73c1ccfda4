"""Devices, and the number formats that they multiply natively."""

from __future__ import annotations

import torch

from cfa_cli.config import Precision, check_device_name
from cfa_cli.errors import DeviceError, UsageError
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


def backbone_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type that the backbone computes in; `auto` is bfloat16 where the device multiplies it natively."""
    if precision != "auto":
        if precision == "float16" and device.type == "cpu":
            raise UsageError("float16 is for accelerators.", "Use --precision auto, float32 or bfloat16 on the CPU.")
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    return torch.bfloat16 if native_bfloat16(device) else torch.float32


def number_type(dtype: torch.dtype) -> NumberType:
    """Return the name of a type that `backbone_dtype` gave."""
    names: dict[torch.dtype, NumberType] = {
        torch.float32: "float32",
        torch.bfloat16: "bfloat16",
        torch.float16: "float16",
    }
    return names[dtype]


def native_bfloat16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 natively (on the CPU: AMX or AVX512-BF16)."""
    if device.type == "cpu":
        # torch has no public question for this; where its private ones are gone, float32 is right and only slower.
        asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(ask() for ask in asked if ask is not None)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
