"""The options that commands share, and how their values are read."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cfa_cli.config import PRESETS, FitConfig, Precision, Preset
from cfa_cli.engine.cluster import LOCAL, is_address
from cfa_cli.errors import UsageError

DEFAULT_MODEL = Path("cfa-model.safetensors")

FILES, MESSAGES = "Files", "Messages"  # panels of --help
PANELS = {  # of the options that are made from FitConfig's fields, in their order
    "Input": ("size", "crop", "stride"),
    "Backbone": ("backbone", "layers", "weights"),
    "Memory bank and descriptor": ("bank", "gamma_c", "gamma_d"),
    "Training": ("augment", "epochs", "batch_size", "lr", "max_images", "seed"),
    "Threshold": ("holdout", "max_fpr", "min_area"),
    "Computing": ("device", "precision"),
}
_METAVARS = {"size": "SIZE", "crop": "SIZE", "gamma_c": "NUMBER", "layers": "NAMES", "weights": "NAME|FILE"}
_METAVARS_OF_TYPES = {str: "NAME", int: "N", float: "NUMBER"}
_UNSET = {"size": "auto", "crop": "none", "gamma_c": "auto", "layers": "4,8,16"}  # what None means


def field_option(name: str, default: str | None = None) -> Any:
    """Return the Typer option of a field of FitConfig: its help, and `default` or else its default in every preset."""
    kind, *notes = typing.get_args(typing.get_type_hints(FitConfig, include_extras=True)[name])
    return typer.Option(
        f"--{name.replace('_', '-')}",
        help=f"{next(note for note in notes if isinstance(note, str))} \\[default: {default or _default(name)}]",
        metavar=_METAVARS.get(name) or _METAVARS_OF_TYPES.get(kind),
        show_default=False,
        rich_help_panel=next(panel for panel, names in PANELS.items() if name in names),
    )


def _default(name: str) -> str:
    """Return the field's default as text, and those of the presets that have another."""
    texts = {preset: _text(name, getattr(config, name)) for preset, config in PRESETS.items()}
    others = [f"{preset}: {text}" for preset, text in texts.items() if text != texts["default"]]
    return "; ".join([texts["default"], *others])


def _text(name: str, value: object) -> str:
    if value is None:
        return _UNSET[name]
    if isinstance(value, float):
        return f"{value:g}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


Model = Annotated[Path, typer.Option("--model", "-m", help="The model to use.", metavar="FILE", rich_help_panel=FILES)]
Device = Annotated[str, field_option("device")]
PrecisionOption = Annotated[Precision | None, field_option("precision", "the model's")]
MaxFpr = Annotated[float | None, field_option("max_fpr", "the model's")]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="[ADDRESS]",
        help="Spread the work over a Ray cluster: auto for the one that this machine is part of, its HOST:PORT, or no "
        "address for this machine's cores. Its workers must see the images and --out.",
        show_default=False,
        rich_help_panel="Computing",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.", rich_help_panel=MESSAGES),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress, no notes: results and errors alone.", rich_help_panel=MESSAGES),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also show how long each phase took.", rich_help_panel=MESSAGES)
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.", rich_help_panel=FILES)]
MaxPixels = Annotated[
    float,
    typer.Option(
        "--max-pixels",
        metavar="NUMBER",
        help="Megapixels of the largest image file that is read.",
        rich_help_panel="Input",
    ),
]
_IGNORED = "a mask (white is ignored), polygons as JSON, or a folder of these by the images' names"
FitIgnore = Annotated[
    Path | None,
    typer.Option(
        "--ignore",
        metavar="PATH",
        help=f"What not to look at: {_IGNORED}.",
        show_default="none",
        rich_help_panel="Input",
    ),
]
Ignore = Annotated[
    Path | None,
    typer.Option(
        "--ignore",
        metavar="PATH",
        help=f"What not to look at: {_IGNORED}; or none.",
        show_default="the model's",
        rich_help_panel="Input",
    ),
]
PresetOption = Annotated[
    Preset,
    typer.Option(
        help="default: a K-means bank, no adaptation, scores normalised by position; it finds more defects, many times "
        "sooner. fast: half as many pixels. paper: the paper's recipe, for comparisons."
    ),
]


def fit_options(leave_out: Collection[str] = ()) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command --preset and an option for each field of FitConfig but `leave_out`.

    They stand where the command has its parameter `config`, which gets the FitConfig that they make.
    """
    kinds = {
        name: str if name in _TEXTS else typing.get_args(kind)[0]
        for name, kind in typing.get_type_hints(FitConfig, include_extras=True).items()
    }
    names = [name for panel in PANELS.values() for name in panel if name not in leave_out]
    options = [inspect.Parameter("preset", inspect.Parameter.KEYWORD_ONLY, default="default", annotation=PresetOption)]
    options += [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kinds[name] | None, field_option(name)],
        )
        for name in names
    ]

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
            parameters += options if parameter.name == "config" else own

        @functools.wraps(command)
        def with_config(**values: Any) -> int:
            given = {name: value for name in names if (value := values.pop(name)) is not None}
            return command(config=build_config(values.pop("preset"), given), **values)

        del with_config.__wrapped__  # Typer reads the signature of what is wrapped
        with_config.__annotations__ = {}
        vars(with_config)["__signature__"] = signature.replace(parameters=parameters)
        return with_config

    return decorate


def build_config(preset: Preset, given: dict[str, Any]) -> FitConfig:
    """Return the preset's configuration with what was given on the command line. Raises UsageError."""
    changes = {name: _TEXTS[name](value) if name in _TEXTS else value for name, value in given.items()}
    return replace(PRESETS[preset], **changes)


def parse_size(text: str, option: str) -> tuple[int, int]:
    """Read `224` or `256x640` as (height, width) in px. Raises UsageError."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if not match:
        raise UsageError(f"{option} {text} is no size.", f"Write {option} 256, or HEIGHTxWIDTH like 256x640.")
    height = int(match[1])
    return height, int(match[2] or height)


def parse_number(text: str, option: str) -> float:
    """Read a number. Raises UsageError."""
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option} {text} is no number.", f"Write {option} 4, or {option} auto.") from None


_TEXTS: dict[str, Callable[[str], Any]] = {  # fields that are written as text on the command line
    "size": lambda text: None if text == "auto" else text if text in ("small", "full") else parse_size(text, "--size"),
    "crop": lambda text: parse_size(text, "--crop"),
    "gamma_c": lambda text: None if text == "auto" else parse_number(text, "--gamma-c"),
    "layers": lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
}


def complete_ray(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the address after each `--ray` that has none: Typer knows no optional values."""
    completed: list[str] = []
    for argument in arguments:
        if completed[-1:] == ["--ray"] and not is_address(argument):
            completed.append(LOCAL)
        completed.append(argument)
    return [*completed, LOCAL] if completed[-1:] == ["--ray"] else completed
