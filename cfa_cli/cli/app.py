"""The command `cfa` and its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from cfa_cli import __version__
from cfa_cli.cli import benchmark, export, fit, info, predict

app = typer.Typer(
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find and localise defects in product images, after seeing good ones only.",
    epilog="Example: cfa fit photos/good && cfa predict photos/new",
)
app.command("fit", epilog="Example: cfa fit photos/good --report")(fit.fit)
app.command("predict", epilog="Example: cfa predict photos/new --out results")(predict.predict)
app.command("benchmark", epilog="Example: cfa benchmark mvtec --data-root /data --preset paper")(benchmark.benchmark)
app.command("export", epilog="Example: cfa export --format onnx")(export.export)
app.command("info", epilog="Example: cfa info cfa-model.safetensors")(info.info)


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
