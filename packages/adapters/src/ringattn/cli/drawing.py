"""`ringattn draw`: who holds which tokens and who computes what, on the terminal or as an SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ringattn.cli import choices, pictures, sizes
from ringattn_core import svg as vector


def draw(
    seqlen: choices.SeqlenOption = "16",
    cp: choices.CpOption = 4,
    layout: choices.LayoutOption = "zigzag",
    route: choices.RouteOption = "ring",
    window: choices.WindowOption = None,
    causal: Annotated[bool, typer.Option(help="Does a query see no key after it?")] = True,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the attention matrix to this file instead.")
    ] = None,
) -> None:
    """Draw the tokens of every rank, the attention matrix with the hop of every cell, and the work of every hop.

    Examples: ringattn draw --layout striped; ringattn draw --seqlen 7,5,12 --window 4; ringattn draw --svg mask.svg
    """
    schedules = choices.schedules(layout, route, sizes.lengths(seqlen), cp, window, causal=causal)
    console = Console(highlight=False)
    if svg is not None:
        try:
            svg.write_text(vector.mask(schedules), encoding="utf-8")
        except OSError as error:
            raise typer.BadParameter(f"{svg} cannot be written: {error.strerror}.", param_hint="'--svg'") from error
        console.print(f"The attention matrix is in {svg}.")
        return
    width = console.width
    for drawing in (
        pictures.ownership(schedules[0].queries, width),
        pictures.mask(schedules, width),
        pictures.timeline(schedules, width),
    ):
        pictures.show(console, drawing)
        console.print()
