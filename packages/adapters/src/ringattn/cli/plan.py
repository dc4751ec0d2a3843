"""`ringattn plan`: the predicted cost of each route, before a GPU is rented."""

from __future__ import annotations

from functools import cache
from itertools import accumulate, pairwise
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ringattn.cli import choices, sizes
from ringattn.cli.progress import busy, followed
from ringattn_core.errors import lookup
from ringattn_core.look.auto import CANDIDATES, UNPREDICTED, Routes, auto_routes, typical
from ringattn_core.look.machine import MACHINES, Machine
from ringattn_core.look.shape import ACCUMULATOR, Shape
from ringattn_core.look.simulate import Forecast, predict
from ringattn_core.plan.layout import Sharding, layout_named
from ringattn_core.plan.local_rows import default_early_rows
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.route import route_named
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import Window, chunk

FULL = "✗"  # marks what does not fit into the GPU
Passes = tuple[tuple[Schedule, ...], tuple[Schedule, ...]]  # all ranks' schedules of a forward and of a backward pass


def plan(
    context: typer.Context,
    seqlen: choices.SeqlenOption = "128k",
    cp: choices.CpOption = 8,
    layout: choices.LayoutOption = "zigzag",
    route: choices.RoutesOption = None,
    window: choices.WindowOption = None,
    causal: choices.CausalOption = True,
    mask: choices.MaskOption = None,
    documents: Annotated[
        int, typer.Option(parser=sizes.whole(1), metavar="NUMBER", help="Documents of equal length in --seqlen tokens.")
    ] = 1,
    heads: Annotated[int, typer.Option(parser=sizes.whole(1), metavar="NUMBER", help="Query heads.")] = 32,
    kv_heads: Annotated[int, typer.Option(parser=sizes.whole(1), metavar="NUMBER", help="Key and value heads.")] = 8,
    head_dim: Annotated[int, typer.Option(parser=sizes.whole(1), metavar="NUMBER", help="Dimensions of a head.")] = 128,
    gpu: Annotated[str, typer.Option(metavar="GPU", help="The machine to predict for: h100 or h200.")] = "h200",
    one_sided: Annotated[bool, typer.Option(help="GPUs of one host that copy out of each other's memory.")] = True,
) -> None:
    """Predict time, traffic and memory of one attention layer, forward and backward, by route.

    The columns, each of the rank that has the most where ranks differ:

    - time: until the last rank has done both passes
    - of ideal: how much of that time an equal share of the work needs, with nothing lost
    - waiting: how long a GPU waits for keys, for gradients or for its host
    - TFLOP: what is computed
    - received: keys, values and gradients of other ranks
    - memory: the most that is held in addition to q, k, v and their gradients; ✗ where that does not fit the GPU

    Examples: ringattn plan --seqlen 1M --window 4096; ringattn plan --route ring --route 'double_ring(4)';
    ringattn plan --layout balanced --mask 'shared_prefix(8k, [1k] * 24)'
    """
    if heads % kv_heads:
        raise typer.BadParameter(f"it must divide --heads = {heads}, got {kv_heads}.", param_hint="'--kv-heads'")
    try:
        machine = lookup(gpu.lower(), MACHINES, "machine")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--gpu'") from error
    if mask is not None:
        choices.check_mask(context)
    lengths, seen = choices.asked(_lengths(sizes.lengths(seqlen), documents), choices.band(window, causal), mask)
    shape = Shape(heads, kv_heads, head_dim, grad_itemsize=2 if one_sided else ACCUMULATOR)
    sharding = Sharding(layout_named(layout), tuple(accumulate(lengths, initial=0)), cp)
    with busy("choosing for auto"):
        auto = _auto(sharding, seen, shape, machine, one_sided)
    plans, marks = _plans(route or _routes(cp), auto, layout, lengths, cp, seen)
    found = {
        name: predict(forward, shape, machine, backward=backward, one_sided=one_sided)
        for name in followed(list(plans), "predicting")
        for forward, backward in [plans[name]]
    }
    work = {name: _flop(shape, max(schedule.area for schedule in each)) for name, (each, _) in plans.items()}
    some, _ = next(iter(plans.values()))
    title = f"{_stream(lengths)} on {sizes.count(cp, 'rank')}, {layout}, {heads} heads over {kv_heads}, bf16, one layer"
    notes = [*_notes(some, typical(sharding).sharding, seen), *_room(found, machine, gpu)]
    _show(title, _table(found, work, marks, machine.capacity), notes)
    Console(highlight=False).print(
        f"[dim]{_work(some, shape)} Predicted for {gpu.upper()}s from measured kernels and links "
        "(ringattn_core/look/machine.py).[/]"
    )


def _auto(sharding: Sharding, seen: Window | Mask, shape: Shape, machine: Machine, one_sided: bool) -> Routes:
    """What "auto" takes in a call of `attention`."""
    return UNPREDICTED if isinstance(seen, Mask) else auto_routes(sharding, seen, shape, machine, one_sided=one_sided)


def _plans(
    routes: list[str], auto: Routes, layout: str, lengths: list[int], cp: int, seen: Window | Mask
) -> tuple[dict[str, Passes], dict[str, str]]:
    """The schedules of each route, and what the table says of "auto" behind its name."""

    @cache
    def planned(name: str) -> Passes:
        forward, backward = (
            choices.schedules(layout, name, lengths, cp, seen, num_early_rows=num_early_rows)
            for num_early_rows in (default_early_rows(sum(lengths) // cp), 0)
        )
        return forward, backward

    plans = {name: planned(name) for name in routes if name != "auto"}
    marks = {name: _chosen(name, auto) if cp > 1 else "" for name in plans}
    if not plans or (cp > 1 and " ← auto" not in marks.values()):
        plans["auto"] = planned(auto.forward)[0], planned(auto.backward)[1]
        marks["auto"] = "" if any(marks.values()) else f" = {' / '.join(dict.fromkeys(auto))}"
    return plans, marks


def _show(title: str, table: Table, notes: list[str]) -> None:
    """Print the table, in lines for a narrow terminal, between its title and its notes."""
    console = Console(highlight=False)
    console.print(title, style="bold")
    if Measurement.get(console, console.options.update(max_width=1000), table).maximum > console.width:
        table = _upright(table)
    console.print(table)
    for note in notes:
        console.print(f"[yellow]{note}[/]")


def _room(found: dict[str, Forecast], machine: Machine, gpu: str) -> list[str]:
    """Notes on the routes that do not fit into a GPU."""
    capacity = machine.capacity
    large = [name for name, forecast in found.items() if forecast.total_bytes > capacity]
    if not large:
        return []
    needed = min(forecast.total_bytes for forecast in found.values())
    room = f"the {sizes.data(capacity)} of an {gpu.upper()}"
    note = f"{FULL} does not fit into {room}, with q, k, v and gradients of this layer."
    if len(large) < len(found):
        return [note]
    return [note, f"No route here fits: the smallest needs {sizes.data(needed)} in all. Take more ranks."]


def _work(schedules: tuple[Schedule, ...], shape: Shape) -> str:
    areas = [schedule.area for schedule in schedules]
    share = max(areas) / (sum(areas) or 1)
    return f"Work of a layer: {_flop(shape, sum(areas)):.3g} FLOP; the busiest rank has {share:.1%} of it."


def _lengths(given: list[int], documents: int) -> list[int]:
    """The lengths of all documents: those that were given, or equal parts of one length."""
    if documents == 1:
        return given
    if len(given) > 1:
        raise typer.BadParameter(
            f"--seqlen already gives the lengths of {len(given)} documents: leave one of the two out.",
            param_hint="'--documents'",
        )
    (seqlen,) = given
    if documents > seqlen:
        raise typer.BadParameter(
            f"{documents} documents need as many tokens or more, got {seqlen}.", param_hint="'--documents'"
        )
    return [len(chunk(range(seqlen), index, documents)) for index in range(documents)]


def _stream(lengths: list[int]) -> str:
    documents = f" in {len(lengths):,} documents" if len(lengths) > 1 else ""
    return sizes.count(sum(lengths), "token") + documents


def _routes(cp: int) -> list[str]:
    if cp == 1:
        return ["ring"]  # All are the same.
    return ["ring", "waves", *(["waves(3)"] if cp > 2 else []), "gather"]


def _chosen(name: str, auto: Routes) -> str:
    """For which of the two passes "auto" takes a route."""
    kinds = [kind for kind, chosen in auto._asdict().items() if CANDIDATES[chosen] is route_named(name)]
    return f" ← {kinds[0]}" if len(kinds) == 1 else " ← auto" if kinds else ""


def _notes(schedules: tuple[Schedule, ...], like: Sharding, seen: Window | Mask) -> list[str]:
    """Notes below the table; `like` is the sharding that "auto" was chosen for."""
    cp, notes = len(schedules), []
    idle = sum(schedule.query_length == 0 for schedule in schedules)
    if idle:
        notes.append(f"{idle} of the {cp} ranks hold no token at all: the sequence is short for --cp.")
    if cp == 1:
        notes.append("One rank has all the keys, so every route is the same.")
    elif isinstance(seen, Mask):
        notes.append("Nothing is predicted for auto under a mask: it is waves.")
    elif like.cu_seqlens != schedules[0].queries.cu_seqlens:
        notes.append(f"auto was chosen for {_described(like)}, not for these lengths: another may be faster here.")
    return notes


def _described(sharding: Sharding) -> str:
    lengths = [stop - start for start, stop in pairwise(sharding.cu_seqlens)]
    if len(lengths) == 1:
        return f"one sequence of {sizes.count(lengths[0], 'token')}"
    least, most = min(lengths), max(lengths)
    return f"{len(lengths)} documents of " + (f"{least:,} to " if most - least > 1 else "") + sizes.count(most, "token")


def _flop(shape: Shape, area: int) -> int:
    """The floating-point operations of both passes."""
    return sum(shape.flop(area, backward=backward) for backward in (False, True))


def _upright(table: Table) -> Table:
    """The table for a narrow terminal: one line for each number, so that none is cut."""
    upright = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    titles, *columns = ([column.header, *column.cells] for column in table.columns)
    for row, title in enumerate(titles[1:], 1):
        upright.add_row("", "")
        upright.add_row(Text("route", "dim"), title)
        for column in columns:
            upright.add_row(Text(str(column[0]), "dim"), column[row])
    return upright


def _table(found: dict[str, Forecast], work: dict[str, int], marks: dict[str, str], capacity: float) -> Table:
    table = Table(header_style="dim", box=SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True  # so that it fits a terminal of 80 columns
    for title in ("route", "time", "of ideal", "waiting", "TFLOP", "received", "memory"):
        table.add_column(title, justify="left" if title == "route" else "right", no_wrap=True)
    for name, forecast in found.items():
        memory = sizes.data(forecast.peak_bytes)
        table.add_row(
            Text.assemble(name, (marks.get(name, ""), "bold green")),
            sizes.duration(forecast.time),
            f"{forecast.efficiency:.0%}",
            sizes.duration(forecast.waiting),
            sizes.digits(work[name] / 1e12),
            sizes.data(forecast.bytes_received),
            Text(memory) if forecast.total_bytes <= capacity else Text(f"{memory} {FULL}", "bold red"),
        )
    return table
