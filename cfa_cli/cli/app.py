"""The command `cfa` and its verbs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cfa_cli import __version__
from cfa_cli.cli import benchmark, calibrate, export, fit, info, predict

app = typer.Typer(
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find and localise defects in product images, after seeing good ones only.",
    epilog="Example: cfa fit photos/good && cfa predict photos/new",
)
COMMANDS: dict[Callable[..., Any], str] = {  # and an example of each
    fit.fit: "cfa fit photos/good --report",
    predict.predict: "cfa predict photos/new --out results",
    calibrate.calibrate: "cfa calibrate cfa-model.safetensors photos/good-new-lamp --out new-lamp.safetensors",
    benchmark.benchmark: "cfa benchmark mvtec --data-root /data --preset paper",
    export.export: "cfa export --format onnx",
    info.info: "cfa info cfa-model.safetensors",
}


class _Command(TyperCommand):
    """A command whose usage line names its arguments plainly, without braces."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


for command, example in COMMANDS.items():
    # A line end within a paragraph of the docstring is a space.
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(command) or "")
    app.command(command.__name__, cls=_Command, help=text, epilog=f"Example: {example}")(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cfa {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find and localise defects in product images, after seeing good ones only."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
