"""The command `cfa` and its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from cfa_cli import __version__
from cfa_cli.cli import benchmark, export, fit, info, predict

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find and localise defects in product images, after seeing good ones only.",
)
app.command("fit")(fit.fit)
app.command("predict")(predict.predict)
app.command("benchmark")(benchmark.benchmark)
app.command("export")(export.export)
app.command("info")(info.info)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cfa {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find and localise defects in product images, after seeing good ones only."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
