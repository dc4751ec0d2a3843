"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Annotated

import typer

from ringattn.cli import sizes
from ringattn.cli.progress import followed
from ringattn_core.plan.layout import layout_named
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import route_named
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import Window


def _known_to(look_up: Callable[[str], object]) -> Callable[[str], str]:
    """What takes a name that `look_up` finds something by. It raises BadParameter for others."""

    def known(name: str) -> str:
        try:
            look_up(name)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        return name

    return known


def _seqlen(text: str | int) -> str:
    sizes.lengths(str(text))
    return str(text)


LayoutOption = Annotated[
    str,
    typer.Option(
        parser=_known_to(layout_named),
        metavar="LAYOUT",
        help="Who holds which tokens: zigzag, balanced, contiguous, striped, 'windowed(4096)'.",
    ),
]
ROUTES = "ring, waves, gather, 'waves(3)', 'double_ring(2)'"
RouteOption = Annotated[
    str,
    typer.Option(parser=_known_to(route_named), metavar="ROUTE", help=f"Where keys come from, and when: {ROUTES}."),
]
RoutesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--route",
        parser=_known_to(lambda name: name == "auto" or route_named(name)),
        metavar="ROUTE",
        help=f"A route to show: {ROUTES}, auto. Repeat it for more. Without it: those that auto chooses from.",
        show_default=False,
    ),
]
SeqlenOption = Annotated[
    str,
    typer.Option(
        parser=_seqlen,
        metavar="TOKENS",
        help="Tokens: 8192, 64k, 1M, 1e6; or the lengths of packed documents: 7,5,12.",
    ),
]
CpOption = Annotated[
    int, typer.Option(parser=sizes.whole(1, 256), metavar="RANKS", help="Ranks that share the sequence, up to 256.")
]
WindowOption = Annotated[
    int | None,
    typer.Option(
        parser=sizes.tokens,
        metavar="TOKENS",
        help="Sliding window: tokens that a query sees, itself and those before it; with --no-causal, also after it.",
    ),
]
CausalOption = Annotated[bool, typer.Option(help="Does a query see no key after it?")]


def band(window: int | None, causal: bool) -> Window:
    """The keys that a query sees before and after it, where -1 is all of them."""
    left = -1 if window is None else window - 1
    return left, 0 if causal else left


def schedules(
    layout: str,
    route: str,
    lengths: Sequence[int],
    cp: int,
    window: Window,
    *,
    num_early_rows: int = 0,
) -> tuple[Schedule, ...]:
    """The schedules of all ranks. Raises BadParameter for a route that does not fit."""
    borders = tuple(accumulate(lengths, initial=0))
    try:
        how = layout_named(layout), route_named(route), borders, borders
        ranks = followed(range(cp), f"planning {route}")
        return tuple(plan(*how, rank, cp, window=window, num_early_rows=num_early_rows) for rank in ranks)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--route'") from error
