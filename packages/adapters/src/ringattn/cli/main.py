"""The command `ringattn`."""

from __future__ import annotations

from typing import Annotated

import typer

from ringattn import __version__
from ringattn.cli.checking import check
from ringattn.cli.demo import demo
from ringattn.cli.doctor import doctor
from ringattn.cli.drawing import draw
from ringattn.cli.plan import plan

app = typer.Typer(
    name="ringattn",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, plan, draw, doctor, check):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ringattn {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Exact attention over sequences that are sharded across devices.

    Examples: ringattn doctor; ringattn plan --seqlen 1M --cp 8; ringattn draw --layout striped; ringattn demo
    """
