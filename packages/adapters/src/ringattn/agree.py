"""What all ranks of a group have to ask for alike: compared before each pass, and before any keys travel.

How is in `ringattn_comms.agreement`. With RINGATTN_CHECK=1 in the environment each rank waits for the others before
each pass on a GPU too, and what all ranks should hold alike (sinks, slopes, what `shard` is given) is compared by hash.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_comms.communicator import Communicator
from ringattn_comms.header import AgreementError, encoded
from ringattn_core.plan.layout import LAYOUTS, Sharding
from ringattn_core.plan.route import ROUTES, Route


class Terms(NamedTuple):
    """What all ranks of a call have to say alike; the first difference is the one that is reported."""

    version: str
    RINGATTN_CHECK: bool
    num_heads: int
    num_kv_heads: int
    head_dim: int
    head_dim_v: int
    dtype: str
    device: str
    mask: tuple[int, int]
    layout: str
    route: str
    functions: str
    per_sequence: bool
    head_groups: int
    rows: int
    cu_seqlens: tuple[int, ...]
    cu_seqlens_k: tuple[int, ...]
    softmax_scale: float
    softcap: float
    dropout: float
    sinks: str
    alibi_slopes: str
    deterministic: bool
    needs_gradients: bool

    def encode(self) -> bytes:
        """The same as a part of a header."""
        return _encoded(self)


@lru_cache(1024)
def _encoded(terms: Terms) -> bytes:
    return encoded(tuple(zip(terms._fields, terms, strict=True)))


def turn(
    comm: Communicator, action: str, terms: bytes, device: torch.device, changing: bytes = b""
) -> AbstractContextManager[int]:
    """A pass of all ranks over tensors on a device, and its number: see `Agreement.turn`. One rank asks nobody."""
    if comm.size == 1:
        return nullcontext(0)
    return comm.agreement.turn(action, terms, wait=comm.waits(device) or checked(), changing=changing)


class telling:  # noqa: N801 - it reads as a function
    """What is raised inside is told to the other ranks, for they would wait for this one. Each error is told once."""

    def __init__(self, communicator: Callable[[], Communicator]) -> None:
        self._communicator = communicator

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Of an `AgreementError` the other ranks raise one too.
        if isinstance(error, Exception) and not isinstance(error, AgreementError) and not vars(error).get(_TOLD):
            vars(error)[_TOLD] = True
            _refuse(self._communicator, error)


_TOLD = "ringattn_told"


def _refuse(communicator: Callable[[], Communicator], error: Exception) -> None:
    try:
        comm = communicator()
    except (RuntimeError, TypeError, ValueError):  # There is no group to tell it to, and the error may say so.
        return
    if comm.size > 1:
        comm.agreement.refuse(error)


def checked() -> bool:
    """Does the environment ask for more comparisons than cost nothing?"""
    return os.environ.get("RINGATTN_CHECK", "0") not in ("", "0")


def shared(x: Tensor | None) -> str:
    """What ranks compare of a tensor that all of them should hold alike."""
    if x is None:
        return "none"
    return f"{tuple(x.shape)}{f', hash {content(x)}' if checked() else ''}"


def content(x: Tensor) -> str:
    """A hash of what is in a tensor. On a GPU the host waits for it."""
    flat = x.detach().contiguous().view(-1).view(torch.uint8).cpu()
    return blake2b(bytes(flat.tolist()), digest_size=8).hexdigest()


def named(function: str | Callable[..., object]) -> str:
    """A layout or a route for a message."""
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)


@lru_cache(64)
def functions(sharding: Sharding, route: str | Route) -> str:
    """A hash of what layouts and routes return that are a user's functions: two of them may have one name."""
    size, said = sharding.cp_size, list[object]()
    if getattr(sharding.layout, "__module__", "") != LAYOUTS["zigzag"].__module__:
        said.append([list(sharding.runs(rank)) for rank in range(size)])
    if callable(route) and getattr(route, "__module__", "") != ROUTES["ring"].__module__:
        said.append([route(rank, size) for rank in range(size)])
    return blake2b(str(said).encode(), digest_size=8).hexdigest() if said else "ringattn's"
