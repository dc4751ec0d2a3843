"""The forward pass of a planned call as an operator, `ringattn::planned_attention`, outside of compiled graphs.

Selective activation checkpointing keeps the outputs of the operators that it is told of. With one operator it keeps a
whole pass, and sends no keys again when it recomputes the rest.
"""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor

from ringattn.call import Call

_LIBRARY = torch.library.Library("ringattn", "FRAGMENT")  # type: ignore[no-untyped-call]
_places = count()
_running: dict[int, Run] = {}  # by number, because an operator takes only tensors and numbers


class Run:
    """One forward pass of a call; `number` is the one by which all ranks know it, once it has run."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.number: int | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> list[Tensor]:
        """out, lse, and the random states of the kernels, if they draw dropout masks."""
        place = next(_places)
        _running[place] = self
        try:
            found: list[Tensor] = torch.ops.ringattn.planned_attention(q, k, v, sinks, place)
            return found
        finally:
            del _running[place]


def _forward(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, place: int) -> list[Tensor]:
    run = _running[place]
    result, run.number = run.call.forward(q, k, v, sinks)
    # Either every launch has a state, or none.
    return [result.out, result.lse, *(state for state in result.rng_states if state is not None)]


_LIBRARY.define("planned_attention(Tensor q, Tensor k, Tensor v, Tensor? sinks, int place) -> Tensor[]")  # type: ignore[no-untyped-call]
_LIBRARY.impl("planned_attention", _forward, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
