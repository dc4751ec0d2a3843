"""torch.distributed: NCCL between GPUs, gloo between CPUs, any process group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from ringattn_comms.communicator import Communicator, Work
from ringattn_comms.window import Windows

# PyTorch 2.13 has new names for these two, and warns of the old ones, which are the only ones before.
if torch.__version__ >= "2.13":  # No comparison of letters: PyTorch compares them as versions.
    _all_gather, _reduce_scatter = dist.all_gather_single, dist.reduce_scatter_single
else:
    _all_gather, _reduce_scatter = dist.all_gather_into_tensor, dist.reduce_scatter_tensor


@dataclass(frozen=True, slots=True)
class _Pending:
    """Requests under way; the tensors that are being sent stay alive until they are done."""

    requests: Sequence[dist.Work | None]
    arriving: Tensor
    sent: Sequence[Tensor]

    def wait(self) -> Tensor:
        for request in self.requests:
            if request is not None:
                request.wait()
        return self.arriving


class TorchDist(Communicator):
    """A rank of a process group; None is the default group. Groups of non-contiguous global ranks are fine."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        # None stays None: who keeps the default group alive makes gloo abort when the process ends.
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

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
        return _Pending(dist.batch_isend_irecv(operations) if operations else [], arriving, sent)

    def all_gather(self, x: Tensor) -> Work:
        x = x.contiguous()
        arriving = x.new_empty((self.size, *x.shape))
        # Gloo takes the results one after the other, not stacked: flat views are either.
        work = _all_gather(arriving.view(-1), x.view(-1), group=self.group, async_op=True)
        return _Pending([work], arriving, [x])

    def reduce_scatter(self, x: Tensor) -> Work:
        x = x.contiguous()
        arriving = torch.empty_like(x[0])
        work = _reduce_scatter(arriving.view(-1), x.view(-1), group=self.group, async_op=True)
        return _Pending([work], arriving, [x])

    def all_to_all(self, x: Tensor) -> Work:
        x = x.contiguous()
        arriving = torch.empty_like(x)
        work = dist.all_to_all_single(arriving, x, group=self.group, async_op=True)
        return _Pending([work], arriving, [x])

    def windows(self, device: torch.device) -> Windows | None:
        return _windows(self.group, device) if device.type == "cuda" else None


@cache
def _windows(group: dist.ProcessGroup | None, device: torch.device) -> Windows | None:
    """The group's windows, found once: all ranks ask together, when they first attend on this device."""
    from ringattn_comms.backends.symmetric import SymmetricWindows, unreachable

    return None if unreachable(group, device) else SymmetricWindows(group, device)
