"""The command `ringattn`."""

from __future__ import annotations

import typer

from ringattn.cli.demo import demo
from ringattn.cli.doctor import doctor
from ringattn.cli.drawing import draw
from ringattn.cli.plan import plan

app = typer.Typer(
    name="ringattn",
    help=(
        "Exact attention over sequences that are sharded across devices.\n\n"
        "Examples: ringattn doctor; ringattn plan --seqlen 1M --cp 8; ringattn draw --layout striped; ringattn demo"
    ),
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, plan, draw, doctor):
    app.command()(command)
