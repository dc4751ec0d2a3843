"""What the arguments of a calling convention mean: who holds which tokens, and where sequences begin and end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ringattn import checks
from ringattn.context_parallel import ContextParallel
from ringattn.conventions import TYPES, Convention
from ringattn.lengths import Borders, read, scaled
from ringattn.llama3 import head_groups, stream_borders, stream_slopes
from ringattn.no_compile import no_compile
from ringattn_comms.connect import Group
from ringattn_core.plan.layout import LAYOUTS
from ringattn_core.plan.route import ROUTES, Route, at_once

Function = Callable[..., Any]
Given = dict[str, Any]
"""The arguments of a call by name, with defaults for those that were left out."""

_ROUTES: dict[str, Route] = {**ROUTES, "at_once": at_once}


def function(
    module: str,
    name: str,
    doc: str,
    required: Sequence[str],
    defaults: Mapping[str, Any],
    compute: Callable[[Given], Any],
) -> Function:
    """A function of a module, with these arguments; `compute` gets them by name. torch.compile does not look inside."""
    kind, names = inspect.Parameter.POSITIONAL_OR_KEYWORD, (*required, *defaults)
    signature = inspect.Signature(
        [
            inspect.Parameter(
                name, kind, default=defaults.get(name, inspect.Parameter.empty), annotation=TYPES.get(name, "Tensor")
            )
            for name in names
        ]
    )

    allowed = set(names)

    def call(*args: Any, **kwargs: Any) -> Any:
        given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        if given.keys() != allowed or len(args) > len(names) or not kwargs.keys().isdisjoint(names[: len(args)]):
            _explain(name, signature, args, kwargs)
        return compute(given)

    call = no_compile(call)
    vars(call)["__signature__"] = signature
    call.__module__, call.__name__, call.__qualname__, call.__doc__ = module, name, name, doc
    return call


def _explain(name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise TypeError for arguments that do not fit. To let `bind` look at every call would take ten times as long."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}(): {error}.") from None


class Divided(NamedTuple):
    """How the tokens of a call are divided."""

    cp: ContextParallel
    borders: Borders | None  # of the whole sequences; None for a batch
    alibi_slopes: Tensor | None  # of the sequences of those borders, or of heads


def divide(convention: Convention, group: Group, q: Tensor, k: Tensor, v: Tensor, given: Given) -> Divided:
    """Who holds which tokens. Raises ValueError where the lengths do not describe q, k and v."""
    layout, route, slopes = LAYOUTS[convention.layout], _ROUTES[convention.route], given["alibi_slopes"]
    if not convention.lengths:
        return Divided(ContextParallel(group, layout, route), None, slopes)
    checks.shapes(q, k, v)
    groups = head_groups(k, given["heads_k_stride"]) if "heads_k_stride" in given else 1
    cp = ContextParallel(group, layout, route, per_sequence="cu_seqlens" in given, head_groups=groups)
    if "cu_seqlens" in given:
        return Divided(cp, _global_borders(given["cu_seqlens"], q, k, cp.cp_size), slopes)
    borders_q, borders_k, keys = given["cu_seqlens_q"], given["cu_seqlens_k"], given["local_k_slice"]
    borders = stream_borders(borders_q, borders_k, keys, cp.cp_rank, cp.cp_size, q.shape[-3])
    if slopes is not None and slopes.shape[:-1] == (len(borders_q) - 1,):
        slopes = stream_slopes(slopes, keys, borders)
    return Divided(cp, borders, slopes)


def _global_borders(cu_seqlens: Tensor, q: Tensor, k: Tensor, size: int) -> Borders:
    """The borders of the whole sequences; `cu_seqlens` are those of the equal part that every rank holds."""
    local = read(cu_seqlens)
    if not local[-1] == q.shape[-3] == k.shape[-3]:
        raise ValueError(
            f"cu_seqlens end at {local[-1]}, but q has {q.shape[-3]} tokens and k {k.shape[-3]}: here they are the "
            f"borders of the sequences as this rank holds them, the global ones divided by the {size} ranks."
        )
    return scaled(local, size)
