"""`ringattn plan`: what each route would cost, before a GPU is rented."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ringattn import ContextParallel
from ringattn.cli import choices, sizes
from ringattn_comms.communicator import Solo
from ringattn_core.errors import lookup
from ringattn_core.machine import H200
from ringattn_core.route import route_named
from ringattn_core.shape import Shape
from ringattn_core.simulate import Forecast, choose_route, predict

MACHINES = {"h200": H200}


def plan(
    seqlen: Annotated[str, typer.Option(help="Tokens: 8192, 64k, 1M.")] = "128k",
    cp: choices.CpOption = 8,
    layout: choices.LayoutOption = choices.Layout.ZIGZAG,
    window: choices.WindowOption = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents of equal length that are packed in it.")] = 1,
    heads: Annotated[int, typer.Option(min=1, help="Query heads.")] = 32,
    kv_heads: Annotated[int, typer.Option(min=1, help="Key and value heads.")] = 8,
    head_dim: Annotated[int, typer.Option(min=1, help="Dimensions of a head.")] = 128,
    gpu: Annotated[str, typer.Option(help="The machine to predict for: h200.")] = "h200",
    one_sided: Annotated[bool, typer.Option(help="GPUs of one host that copy out of each other's memory.")] = True,
) -> None:
    """Predict time, traffic and memory of one attention layer, forward and backward, for every route.

    Example: ringattn plan --seqlen 1M --cp 8 --layout zigzag --window 4096
    """
    tokens = sizes.tokens(seqlen)
    if heads % kv_heads:
        raise typer.BadParameter(f"--kv-heads must divide --heads = {heads}, got {kv_heads}.")
    try:
        machine = lookup(gpu.lower(), MACHINES, "machine")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    lengths = [(index + 1) * tokens // documents - index * tokens // documents for index in range(documents)]
    planned = {name: choices.schedules(layout.value, name, lengths, cp, window) for name in _routes(cp)}
    shape = Shape(heads, kv_heads, head_dim)
    found = {name: predict(each, shape, machine, backward=True, one_sided=one_sided) for name, each in planned.items()}
    console = Console(highlight=False)
    table = _table(found, _auto(cp), choose_route(planned, shape, machine, one_sided=one_sided))
    table.title = f"{tokens:,} tokens on {cp} ranks, {layout.value}, {heads} heads over {kv_heads}, bf16, one layer"
    console.print(table)
    flop = sum(shape.flop(1, backward=backward) for backward in (False, True))
    areas = [schedule.area for schedule in planned["ring"]]
    console.print(
        f"[dim]Work of a layer: {flop * sum(areas):.3g} FLOP, of which the busiest rank has "
        f"{max(areas) / (sum(areas) or 1):.1%}. "
        f"Predicted for {gpu.upper()}s from measured kernels and links (ringattn_core/machine.py).[/]"
    )


def _routes(cp: int) -> list[str]:
    return ["ring", "waves", *(["waves(3)"] if cp > 2 else []), "gather"]


def _auto(cp: int) -> str:
    """The name of the route that "auto" stands for."""
    taken = ContextParallel(Solo(), route="auto").route
    return next((name for name in _routes(cp) if route_named(name) is taken), "auto")


def _table(found: dict[str, Forecast], auto: str, fastest: str) -> Table:
    table = Table(title_justify="left", title_style="bold", header_style="dim")
    for title in ("route", "time", "of the ideal", "waiting", "received", "peak memory", ""):
        table.add_column(title, justify="left" if title in ("route", "") else "right")
    for name, forecast in found.items():
        notes = [*(["auto"] if name == auto else []), *(["fastest"] if name == fastest else [])]
        table.add_row(
            Text(name, style="bold" if name == auto else ""),
            sizes.duration(forecast.time),
            f"{forecast.efficiency:.0%}",
            sizes.duration(forecast.waiting),
            sizes.data(forecast.bytes_received),
            sizes.data(forecast.peak_bytes),
            Text(", ".join(notes), style="green"),
        )
    return table
