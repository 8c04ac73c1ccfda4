"""FLOOR 0: JSON that others wrote, turned into the records that it stands for."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

MAX_TEXT = 4096  # characters of any text in the metadata: a path can have that many


def build_record(kind: Any, value: Any, where: str) -> Any:
    """Turn JSON into the record, tuple or number that an annotation asks for; raise ValueError where it is not one."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is no object")
        hints = typing.get_type_hints(kind)
        names = {field.name for field in fields(kind)}
        lacking = names - value.keys() - _optional(kind)
        if lacking:
            raise ValueError(f"{where}.{min(lacking)} is missing")
        present = names & value.keys()
        return kind(**{name: build_record(hints[name], value[name], f"{where}.{name}") for name in present})
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return build_record(next(a for a in arguments if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {value!r}")
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is no object")
        return {name: build_record(arguments[1], each, f"{where}.{name}") for name, each in value.items()}
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is no list")
        each = [arguments[0]] * len(value) if arguments[1:] == (...,) else list(arguments)
        if len(each) != len(value):
            raise ValueError(f"{where} has {len(value)} entries, expected {len(each)}")
        return tuple(build_record(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(each, value, strict=True)))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind is str and isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(f"{where} has {len(value)} characters")
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise ValueError(f"{where} is {str(value)[:60]!r}, expected {getattr(kind, '__name__', kind)}")


def _optional(kind: Any) -> set[str]:
    """The fields that have a default: files of earlier versions may lack them."""
    return {f.name for f in fields(kind) if f.default is not MISSING or f.default_factory is not MISSING}
