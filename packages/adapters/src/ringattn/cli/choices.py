"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Annotated

import typer

from ringattn.cli import mask_expression, sizes
from ringattn.cli.progress import followed
from ringattn_core.plan.layout import layout_named
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_layout import layout_for
from ringattn_core.plan.mask_planner import plan_mask
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


def _mask(text: str) -> Mask:
    try:
        return mask_expression.read(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


MaskOption = Annotated[
    Mask | None,
    typer.Option(
        parser=_mask,
        metavar="MASK",
        help="What each query sees: makers of ringattn.masks with |, & and -, as in "
        "'causal(64k) | two_way([range(100, 612)])', instead of --seqlen, --window and --no-causal.",
    ),
]


def given(context: typer.Context) -> set[str]:
    """The names of the parameters that were given on the command line; those left out have their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def check_mask(context: typer.Context) -> None:
    """Raise BadParameter for options that say what a mask says already: how many tokens there are, and what is live."""
    double = given(context) & {"seqlen", "documents", "window", "causal"}
    if double:
        names = " and ".join("--no-causal" if name == "causal" else f"--{name}" for name in sorted(double))
        raise typer.BadParameter(f"it says all that {names} would: leave it out.", param_hint="'--mask'")


def band(window: int | None, causal: bool) -> Window:
    """The keys that a query sees before and after it, where -1 is all of them."""
    left = -1 if window is None else window - 1
    return left, 0 if causal else left


def asked(lengths: list[int], window: Window, mask: Mask | None) -> tuple[list[int], Window | Mask]:
    """The lengths of all sequences and what is live in them: as given, or as a mask says."""
    return (lengths, window) if mask is None else ([mask.num_queries], mask)


def schedules(
    layout: str,
    route: str,
    lengths: Sequence[int],
    cp: int,
    seen: Window | Mask,
    *,
    num_early_rows: int = 0,
) -> tuple[Schedule, ...]:
    """The schedules of all ranks. Raises BadParameter for a route, or a mask, that does not fit."""
    borders = tuple(accumulate(lengths, initial=0))
    try:
        shared, path, ranks = layout_named(layout), route_named(route), followed(range(cp), f"planning {route}")
        if isinstance(seen, Mask):
            shared = layout_for(shared, seen)
            return tuple(plan_mask(seen, shared, path, rank, cp) for rank in ranks)
        how = shared, path, borders, borders
        return tuple(plan(*how, rank, cp, window=seen, num_early_rows=num_early_rows) for rank in ranks)
    except ValueError as error:
        hint = "'--mask'" if isinstance(seen, Mask) else "'--route'"
        raise typer.BadParameter(str(error), param_hint=hint) from error
