"""The arguments that all ranks of a group must share: compared before each pass, and before any keys travel.

`ringattn_comms.agreement` does it. With RINGATTN_CHECK=1 in the environment each rank waits for the others before each
pass on a GPU too, and tensors that should be the same on all ranks (sinks, slopes, inputs of `shard`) are compared by
hash.
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
from ringattn_comms.header import AgreementError, encoded
from ringattn_core.kernels.choose import installed
from ringattn_core.plan.layout import Sharding, packed
from ringattn_core.plan.route import BuiltInRoute, Route


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
    """A pass of all ranks over tensors on a device, and its number: see `Agreement.turn`."""
    if comm.size == 1:
        return nullcontext(0)
    return comm.agreement.turn(action, terms, wait=comm.waits(device) or checked(), changing=changing)


class telling:  # noqa: N801 - it reads as a function
    """Errors that are raised inside are told to the other ranks, which would wait for this one; each error once."""

    def __init__(self, communicator: Callable[[], Communicator]) -> None:
        self._communicator = communicator

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # The other ranks raise an `AgreementError` too.
        if isinstance(error, Exception) and not isinstance(error, AgreementError) and not vars(error).get(_TOLD):
            vars(error)[_TOLD] = True
            _refuse(self._communicator, error)


_TOLD = "ringattn_told"


def _refuse(communicator: Callable[[], Communicator], error: Exception) -> None:
    try:
        comm = communicator()
    except (RuntimeError, TypeError, ValueError):  # There is no group to tell, and the error may say so.
        return
    if comm.size > 1:
        comm.agreement.refuse(error)


def checked() -> bool:
    """Does the environment ask for the comparisons that cost time?"""
    return os.environ.get("RINGATTN_CHECK", "0") not in ("", "0")


def shared(x: Tensor | None) -> str:
    """What ranks compare of a tensor that should be the same on all of them."""
    if x is None:
        return "none"
    return f"{tuple(x.shape)}{f', hash {content(x)}' if checked() else ''}"


def compare_shards(comm: Communicator, tensors: tuple[Tensor, ...]) -> None:
    """Raise ValueError if another rank shards other tensors. All ranks call it together."""
    terms = [(f"tensor {place} of shard", shared(x)) for place, x in enumerate(tensors)]
    with turn(comm, "shard", encoded((("RINGATTN_CHECK", True), *terms)), tensors[0].device):
        pass


def content(x: Tensor) -> str:
    """A hash of a tensor's values. On a GPU the host waits for it."""
    flat = x.detach().contiguous().view(-1).view(torch.uint8).cpu()
    return blake2b(bytes(flat.tolist()), digest_size=8).hexdigest()


def named(function: str | Callable[..., object]) -> str:
    """A layout or a route for a message."""
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)


@lru_cache(64)
def functions(sharding: Sharding, route: str | Route) -> str:
    """A hash of what a user's layout and route return, because two functions may have one name."""
    size, said = sharding.cp_size, list[object]()
    if not packed(sharding.layout).built_in:
        said.append([list(sharding.runs(rank)) for rank in range(size)])
    if not isinstance(route, str | BuiltInRoute):
        said.append([route(rank, size) for rank in range(size)])
    return blake2b(str(said).encode(), digest_size=8).hexdigest() if said else "ringattn's"
