"""What all ranks of a group have to ask for alike: compared before each pass, and before any keys travel.

How is in `ringattn_comms.agreement`. With RINGATTN_CHECK=1 in the environment each rank waits for the others before
each pass on a GPU too, and what all ranks should hold alike (sinks, slopes, what `shard` is given) is compared by hash.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from hashlib import blake2b
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ringattn_comms.agreement import Agreement
from ringattn_comms.communicator import Communicator
from ringattn_comms.header import AgreementError
from ringattn_core.kernels.choose import installed
from ringattn_core.plan.layout import LAYOUTS, Sharding
from ringattn_core.plan.route import ROUTES, Route


class Peers(NamedTuple):
    """What a rank knows of the others' devices."""

    alike: bool  # the same GPUs and kernels on all ranks
    one_sided: bool  # each device addresses the memory of all others


UNKNOWN = Peers(alike=False, one_sided=False)
_PEERS: WeakKeyDictionary[Agreement, dict[torch.device, Peers]] = WeakKeyDictionary()


def peers(comm: Communicator, device: torch.device) -> Peers | None:
    """What `introduce` returned for this group and device, None before; `UNKNOWN` where there is nothing to ask."""
    if comm.size == 1 or device.type != "cuda":
        return UNKNOWN
    return _PEERS.get(comm.agreement, {}).get(device)


def introduce(comm: Communicator, device: torch.device, terms: bytes) -> Peers:
    """Let the ranks tell each other what they compute with. All ranks call it together, once for each device."""
    alike = len(set(comm.agreement.introduce(device.type, _facts(device), terms))) == 1
    told = Peers(alike, alike and comm.shared_buffers(device) is not None)
    _PEERS.setdefault(comm.agreement, {})[device] = told
    return told


@cache
def _facts(device: torch.device) -> str:
    """What a choice of routes depends on that ranks may differ in."""
    return f"{torch.cuda.get_device_name(device)}, {', '.join(installed())}"


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
