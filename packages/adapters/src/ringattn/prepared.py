"""The last calls that were prepared for a ContextParallel, so that the layers of a model prepare one call together."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ringattn import agree
from ringattn.lengths import read

if TYPE_CHECKING:
    from ringattn.call import CallSpec

_MOST = 4  # kinds of layers that a model alternates between; schedules of many sequences are large


class Prepared:
    """Calls by what was asked. Of more than a few kinds the oldest goes first."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, Any] = {}

    def get(self, question: Hashable | None) -> Any:
        """The call, or None."""
        return None if question is None else self._calls.get(question)

    def put(self, question: Hashable | None, call: object) -> None:
        """Keep a call; a question that is None is not kept."""
        if question is None:
            return
        if len(self._calls) >= _MOST:
            self._calls.pop(next(iter(self._calls)), None)
        self._calls[question] = call


def question_of(
    spec: CallSpec, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None
) -> Hashable | None:
    """All that a prepared call depends on; None where the next call cannot be the same one.

    Slopes are part of a call's options, a dropout seed is new in every call, and RINGATTN_CHECK compares contents.
    """
    if alibi_slopes is not None or spec.dropout_p or agree.checked():
        return None
    window: object = spec.window_size  # what a user gave, which nothing has checked yet
    if not (isinstance(window, tuple) and all(isinstance(side, int) for side in window)):
        return None
    cu_seqlens, cu_seqlens_k = spec.cp.cu_seqlens if spec.cu_seqlens is None else spec.cu_seqlens, spec.cu_seqlens_k
    return (
        *(x if x is None else (x.shape, x.dtype, x.device) for x in (q, k, v, sinks)),
        *(bool(spec.causal), window, spec.softcap, spec.softmax_scale, bool(spec.deterministic), bool(spec.return_lse)),
        None if cu_seqlens is None else read(cu_seqlens),
        None if cu_seqlens_k is None else read(cu_seqlens_k, "cu_seqlens_k"),
        spec.masks or spec.cp.masks,
        *(spec.needs_gradients, torch.are_deterministic_algorithms_enabled()),
    )
