"""All ranks of a group have to ask for the same attention: what each asks for is compared before any keys travel.

What stays as it is from batch to batch is compared when it is first asked for, which costs one message in a program's
life. With RINGATTN_CHECK=1 in the environment every call compares everything, lengths too, and waits for the answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ringattn.context_parallel import ContextParallel
from ringattn_comms.communicator import Communicator
from ringattn_core.streams import capturing


class Terms(NamedTuple):
    """What all ranks have to say alike."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    head_dim_v: int
    dtype: str
    mask: tuple[int, int]
    dropout: bool
    layout: str
    route: str
    per_sequence: bool
    head_groups: int

    @classmethod
    def of(
        cls, cp: ContextParallel, q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int], dropout_p: float
    ) -> Terms:
        return cls(
            *(q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1], str(q.dtype), window, dropout_p > 0),
            *(_name(cp.layout), _name(cp.route), cp.per_sequence, cp.head_groups),
        )


class Batch(NamedTuple):
    """What changes from batch to batch."""

    rows: int
    cu_seqlens: tuple[int, ...]
    cu_seqlens_k: tuple[int, ...]


def check(comm: Communicator, terms: Terms) -> None:
    """Raise ValueError where another rank was told something else; asked once. All ranks ask together."""
    # A capture comes after a call of the same kind.
    if comm.size > 1 and not capturing():
        _compare(comm.facts(terms))


def check_all(comm: Communicator, terms: Terms, batch: Batch) -> None:
    """The same of the lengths too, in every call, where the environment asks for it."""
    if comm.size > 1 and os.environ.get("RINGATTN_CHECK", "0") not in ("", "0"):
        for said in (terms, batch):
            _compare(comm.facts(said, again=True))


def _compare(said: tuple[NamedTuple, ...]) -> None:
    """Raise ValueError unless all ranks say the same, with the first thing that they differ in."""
    if said.count(said[0]) == len(said):
        return
    for field in said[0]._fields:
        values = [getattr(each, field) for each in said]
        if len(set(values)) > 1:
            other = next(rank for rank, value in enumerate(values) if value != values[0])
            raise ValueError(
                f"The ranks of a group ask for different attention: {field} is {values[0]} on rank 0 and "
                f"{values[other]} on rank {other}. All ranks call attention with the same arguments, each on its own "
                "share of q, k and v."
            )


def _name(function: str | Callable[..., object]) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
