"""`ringattn plan`: what each route would cost, before a GPU is rented."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ringattn.cli import choices, sizes
from ringattn.cli.progress import followed
from ringattn_core.auto import Routes, auto_routes, typical
from ringattn_core.errors import lookup
from ringattn_core.machine import MACHINES
from ringattn_core.settled import early_rows
from ringattn_core.shape import ACCUMULATOR, Shape
from ringattn_core.simulate import Forecast, predict


def plan(
    seqlen: Annotated[int, typer.Option(parser=sizes.tokens, metavar="TOKENS", help="Tokens: 8192, 64k, 1M.")] = 128
    * 1024,
    cp: choices.CpOption = 8,
    layout: choices.LayoutOption = "zigzag",
    window: choices.WindowOption = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents of equal length that are packed in it.")] = 1,
    heads: Annotated[int, typer.Option(min=1, help="Query heads.")] = 32,
    kv_heads: Annotated[int, typer.Option(min=1, help="Key and value heads.")] = 8,
    head_dim: Annotated[int, typer.Option(min=1, help="Dimensions of a head.")] = 128,
    gpu: Annotated[str, typer.Option(help="The machine to predict for: h100 or h200.")] = "h200",
    one_sided: Annotated[bool, typer.Option(help="GPUs of one host that copy out of each other's memory.")] = True,
) -> None:
    """Predict time, traffic and memory of one attention layer, forward and backward, for every route.

    Example: ringattn plan --seqlen 1M --cp 8 --layout zigzag --window 4096
    """
    if heads % kv_heads:
        raise typer.BadParameter(f"it must divide --heads = {heads}, got {kv_heads}.", param_hint="'--kv-heads'")
    if documents > seqlen:
        raise typer.BadParameter(f"{seqlen} tokens are too few for {documents} of them.", param_hint="'--documents'")
    try:
        machine = lookup(gpu.lower(), MACHINES, "machine")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--gpu'") from error
    lengths = [(index + 1) * seqlen // documents - index * seqlen // documents for index in range(documents)]
    early = early_rows(seqlen // cp), 0  # in a forward pass and in a backward pass
    planned = {
        name: [choices.schedules(layout, name, lengths, cp, window, ahead=ahead) for ahead in early]
        for name in _routes(cp)
    }
    shape = Shape(heads, kv_heads, head_dim, grad_itemsize=2 if one_sided else ACCUMULATOR)
    mask = (-1 if window is None else window - 1, 0)
    like = typical(planned["ring"][0][0].queries)
    auto = auto_routes(like, mask, shape, machine, one_sided=one_sided)
    if auto.forward != auto.backward:
        planned["auto"] = [planned[auto.forward][0], planned[auto.backward][1]]
    found = {
        name: predict(forward, shape, machine, backward=backward, one_sided=one_sided)
        for name in followed(list(planned), "predicting")
        for forward, backward in [planned[name]]
    }
    work = {name: _flop(shape, max(schedule.area for schedule in each)) for name, (each, _) in planned.items()}
    console = Console(highlight=False)
    table = _table(found, work, auto)
    table.title = f"{seqlen:,} tokens on {cp} ranks, {layout}, {heads} heads over {kv_heads}, bf16, one layer"
    console.print(table)
    areas = [schedule.area for schedule in planned["ring"][0]]
    idle = sum(schedule.query_length == 0 for schedule in planned["ring"][0])
    if idle:
        console.print(f"[yellow]{idle} of the {cp} ranks hold no token at all: --seqlen is small for --cp.[/]")
    console.print(
        f"[dim]Work of a layer: {_flop(shape, sum(areas)):.3g} FLOP, of which the busiest rank has "
        f"{max(areas) / (sum(areas) or 1):.1%}. "
        f"Predicted for {gpu.upper()}s from measured kernels and links (ringattn_core/machine.py).[/]"
    )


def _routes(cp: int) -> list[str]:
    return ["ring", "waves", *(["waves(3)"] if cp > 2 else []), "gather"]


def _chosen(name: str, auto: Routes) -> str:
    """For which of the two passes "auto" takes a route."""
    kinds = [kind for kind, chosen in auto._asdict().items() if chosen == name]
    return f" ← {kinds[0]}" if len(kinds) == 1 else " ← auto" if kinds else ""


def _flop(shape: Shape, area: int) -> int:
    """Of both passes."""
    return sum(shape.flop(area, backward=backward) for backward in (False, True))


def _table(found: dict[str, Forecast], work: dict[str, int], auto: Routes) -> Table:
    table = Table(title_justify="left", title_style="bold", header_style="dim", box=SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True  # so that it fits a terminal of 80 columns
    for title in ("route", "time", "of ideal", "waiting", "TFLOP", "received", "memory"):
        table.add_column(title, justify="left" if title == "route" else "right", no_wrap=True)
    for name, forecast in found.items():
        table.add_row(
            Text.assemble(name, (_chosen(name, auto), "bold green")),
            sizes.duration(forecast.time),
            f"{forecast.efficiency:.0%}",
            sizes.duration(forecast.waiting),
            sizes.digits(work[name] / 1e12),
            sizes.data(forecast.bytes_received),
            sizes.data(forecast.peak_bytes),
        )
    return table
