"""torch.distributed: NCCL between GPUs, gloo between CPUs, any process group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Thread
from typing import Any, TypeVar, TypeVarTuple
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist
from torch import Tensor

from ringattn_comms.agreement import Agreement
from ringattn_comms.backends.host_channel import HostChannel
from ringattn_comms.backends.objects import gather_objects
from ringattn_comms.communicator import Communicator, Work
from ringattn_comms.shared_buffer import SharedBuffers

# PyTorch 2.13 has new names for these two, and warns of the old ones, which are the only ones before.
if torch.__version__ >= "2.13":  # No comparison of letters: PyTorch compares them as versions.
    _all_gather, _reduce_scatter = dist.all_gather_single, dist.reduce_scatter_single
else:
    _all_gather, _reduce_scatter = dist.all_gather_into_tensor, dist.reduce_scatter_tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Pending:
    """Requests under way; the tensors that are being sent stay alive until they are done."""

    group: dist.ProcessGroup | None
    requests: Sequence[dist.Work | None]
    arriving: Tensor
    sent: Sequence[Tensor]
    peers: Sequence[int] = ()  # the other end of each request, where it has one

    def wait(self) -> Tensor:
        for place, request in enumerate(self.requests):
            if request is not None:
                try:
                    request.wait()
                except RuntimeError as error:
                    one = len(self.peers) == len(self.requests)
                    peer = _name(self.group, self.peers[place]) if one else "another rank"
                    raise RuntimeError(f"A message of {peer} was lost in the middle of a pass: {error}") from error
        return self.arriving


class TorchDist(Communicator):
    """A rank of a process group; None is the default group. Groups of non-contiguous global ranks are fine."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        # None stays None: who keeps the default group alive makes gloo abort when the process ends.
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._made_for = ref(_lasting(group))

    @property
    def alive(self) -> bool:
        try:
            return dist.get_rank(self.group) == self.rank and _lasting(self.group) is self._made_for()
        except ValueError:  # PyTorch knows this group, or any group, no longer.
            return False

    def send_recv(self, sends: Sequence[tuple[int, Tensor]], sources: Sequence[int], like: Tensor) -> Work:
        arriving = like.new_empty((len(sources), *like.shape))
        sent = [x.contiguous() for _, x in sends]
        # Receives are named first, in the order of the ranks, so that no backend can wait in a circle.
        operations = [
            dist.P2POp(dist.irecv, arriving[place], group=self.group, group_peer=source)
            for place, source in enumerate(sources)
        ]
        operations += [
            dist.P2POp(dist.isend, x, group=self.group, group_peer=destination)
            for (destination, _), x in zip(sends, sent, strict=True)
        ]
        peers = [*sources, *(rank for rank, _ in sends)]
        return _Pending(self.group, dist.batch_isend_irecv(operations) if operations else [], arriving, sent, peers)

    def all_gather(self, x: Tensor) -> Work:
        x = x.contiguous()
        arriving = x.new_empty((self.size, *x.shape))
        # Gloo takes the results one after the other, not stacked: flat views are either.
        work = _all_gather(arriving.view(-1), x.view(-1), group=self.group, async_op=True)
        return _Pending(self.group, [work], arriving, [x])

    def reduce_scatter(self, x: Tensor) -> Work:
        x = x.contiguous()
        arriving = torch.empty_like(x[0])
        work = _reduce_scatter(arriving.view(-1), x.view(-1), group=self.group, async_op=True)
        return _Pending(self.group, [work], arriving, [x])

    def all_to_all(self, x: Tensor) -> Work:
        x = x.contiguous()
        arriving = torch.empty_like(x)
        work = dist.all_to_all_single(arriving, x, group=self.group, async_op=True)
        return _Pending(self.group, [work], arriving, [x])

    @cached_property
    def agreement(self) -> Agreement:
        return _agreement(self.group)

    def all_gather_object(self, x: object) -> list[Any]:
        return gather_objects(self.group, x)

    def waits(self, device: torch.device) -> bool:
        return device.type != "cuda" or not _nccl(self.group)

    def second_communicator(self, device: torch.device) -> Communicator:
        backends = dist.get_backend_config(self.group)
        if f"{device.type}:" not in backends:
            raise ValueError(
                f"Tensors on {device} cannot travel in this group, whose backends are {backends!r}: move them, or name "
                "a backend for them in init_process_group."
            )
        second = _second_communicator(self.group) if device.type == "cuda" and _nccl(self.group) else None
        return TorchDist(second) if second else self

    def shared_buffers(self, device: torch.device) -> SharedBuffers | None:
        return _shared_buffers(self.group, device) if device.type == "cuda" else None


Facts = TypeVarTuple("Facts")
Make = Callable[[dist.ProcessGroup | None, *Facts], T]


def _once(make: Make[*Facts, T]) -> Make[*Facts, T]:
    """Make it once for every group and other facts; None is the current default group, which may be replaced later."""
    made: WeakKeyDictionary[dist.ProcessGroup, dict[tuple[*Facts], T]] = WeakKeyDictionary()

    def get(group: dist.ProcessGroup | None, *facts: *Facts) -> T:
        known = made.setdefault(_lasting(group), {})
        if facts not in known:
            known[facts] = make(group, *facts)
        return known[facts]

    return get


@_once
def _agreement(group: dist.ProcessGroup | None) -> Agreement:
    """One for all communicators of a group. All ranks ask together, when they first call anything on it."""
    rank, everyone = dist.get_rank(group), range(dist.get_world_size(group))
    names = [_name(group, other) for other in everyone]
    # A host whose tensors are on a GPU must not wait.
    channel = HostChannel(_lasting(group).get_group_store(), rank, names, waits=not _nccl(group))
    # Through a weak reference, for what is made once for a group must not keep it alive.
    lasting = ref(_lasting(group))
    return Agreement(rank, channel.say, (lambda: _abort(lasting())) if _nccl(group) else None)


def _abort(group: dist.ProcessGroup | None) -> None:
    """End what GPUs wait for in an NCCL group and its second one, which cannot be used again."""
    for each in (group, None if group is None else _second_communicator(group)):
        if each is not None:
            # At once: the end of one may wait for what the other one's kernels keep from running.
            Thread(target=each.abort, daemon=True).start()


def _nccl(group: dist.ProcessGroup | None) -> bool:
    """Do tensors on GPUs travel by NCCL in this group?"""
    return "cuda:nccl" in dist.get_backend_config(group)


def _lasting(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """The group itself, where None names the default one."""
    lasting = group or dist.group.WORLD
    assert lasting is not None, "a rank of it has asked"
    return lasting


def _name(group: dist.ProcessGroup | None, rank: int) -> str:
    """A rank for an error message."""
    return f"rank {rank}" if group is None else f"rank {rank} (global rank {dist.get_global_rank(group, rank)})"


@_once
def _shared_buffers(group: dist.ProcessGroup | None, device: torch.device) -> SharedBuffers | None:
    """The group's shared buffers, made once: all ranks ask together, when they first attend on this device."""
    from ringattn_comms.backends.symmetric import SymmetricSharedBuffers, unreachable

    if unreachable(group, device):
        return None
    buffers = SymmetricSharedBuffers(group, device)
    _agreement(group).releases.append(buffers.release)
    return buffers


@_once
def _second_communicator(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """A second group of the same ranks, made once, where they can agree on one. All ranks ask together.

    NCCL runs the calls of a group one after the other, so that keys would wait for gradients; gloo has no such queue.
    Only ranks of this group are here, so the call must not need any others. Where the default group is bound to a
    device, that is `split_group`: `new_group` would split the default group, with all its ranks. Elsewhere it is
    `new_group` with local synchronization, which names a group by how many a process has made, and may sort its ranks.
    Ranks that would not meet under one name, or not in this order, see so, and do without.
    """
    ranks = dist.get_process_group_ranks(group)
    default = dist.group.WORLD
    if default is not None and default.bound_device_id is not None:
        return dist.split_group(group, [list(range(len(ranks)))])
    second = dist.new_group(ranks, backend="nccl", use_local_synchronization=True)
    names = set(gather_objects(group, second.group_name))
    return second if len(names) == 1 and dist.get_process_group_ranks(second) == ranks else None
