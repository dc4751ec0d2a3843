"""The module `ring_flash_attn.utils`: helpers with which other projects build rings."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ringattn.lengths import read
from ringattn.no_compile import no_compile

__all__ = [
    "AllGatherComm",
    "RingComm",
    "flatten_varlen_lse",
    "get_default_args",
    "get_half_index",
    "unflatten_varlen_lse",
    "update_out_and_lse",
]


class RingComm:
    """Sends to the next rank of a group and receives from the one before: queue, `commit`, `wait`."""

    def __init__(self, process_group: dist.ProcessGroup | None) -> None:
        self._process_group = process_group
        self._ops: list[dist.P2POp] = []
        self._reqs: list[dist.Work] | None = None
        self.rank, self.world_size = dist.get_rank(process_group), dist.get_world_size(process_group)
        ranks = [(self.rank + by) % self.world_size for by in (1, -1)]
        if process_group is not None:
            ranks = [dist.get_global_rank(process_group, rank) for rank in ranks]
        self.send_rank, self.recv_rank = ranks

    def send_recv(self, to_send: Tensor, recv_tensor: Tensor | None = None) -> Tensor:
        """Queue an exchange; the returned tensor is filled when `wait` has returned."""
        received = torch.empty_like(to_send) if recv_tensor is None else recv_tensor
        self._ops.append(dist.P2POp(dist.isend, to_send, self.send_rank, group=self._process_group))
        self._ops.append(dist.P2POp(dist.irecv, received, self.recv_rank, group=self._process_group))
        return received

    def commit(self) -> None:
        """Start the queued exchanges."""
        if self._reqs is not None:
            raise RuntimeError("commit called twice: call wait before the next commit")
        self._reqs = dist.batch_isend_irecv(self._ops)

    def wait(self) -> None:
        """Wait for the exchanges that were started."""
        if self._reqs is None:
            raise RuntimeError("wait called before commit: there is nothing to wait for")
        for request in self._reqs:
            request.wait()
        self._reqs, self._ops = None, []

    def send_recv_kv(
        self, k: Tensor, v: Tensor, k_buffer: Tensor | None = None, v_buffer: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Queue and start the exchange of keys and values."""
        received = self.send_recv(k, k_buffer), self.send_recv(v, v_buffer)
        self.commit()
        return received


class AllGatherComm:
    """All-gathers that run until `wait`."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.handles: list[Any] = []

    def all_gather(self, output_tensor: Tensor, input_tensor: Tensor) -> None:
        """Start gathering input_tensor of all ranks into output_tensor, one after the other."""
        parts = list(output_tensor.chunk(dist.get_world_size(self.group)))
        self.handles.append(dist.all_gather(parts, input_tensor, group=self.group, async_op=True))

    def wait(self) -> None:
        """Wait for all that were started."""
        for handle in self.handles:
            handle.wait()
        self.handles = []


def get_default_args(func: Any) -> dict[str, Any]:
    """The parameters of a function, or of a `torch.library.custom_op`, with their defaults, or with None."""
    # `_init_fn` is the function that a custom operator was made from.
    function = func if inspect.isfunction(func) else func._init_fn
    defaults = {
        name: None if parameter.default is inspect.Parameter.empty else parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
    }
    return defaults | ({"softcap": 0.0} if "softcap" in defaults else {})


def update_out_and_lse(
    out: Tensor | None,
    lse: Tensor | None,
    block_out: Tensor,
    block_lse: Tensor,
    slice_: tuple[slice, ...] | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a block's out (batch, tokens, heads, head_dim) and lse (batch, heads, tokens) to the sums so far, in fp32.

    The running lse is (batch, tokens, heads, 1). With slice_ the block is for that part of the sums alone.
    """
    block_out, block_lse = block_out.float(), block_lse.transpose(-2, -1).unsqueeze(-1)
    if out is None or lse is None:
        if slice_ is not None:
            raise RuntimeError("the first update_out_and_lse should not pass slice_: there is nothing yet to slice")
        return block_out, block_lse
    if slice_ is not None:
        out[slice_], lse[slice_] = _added(out[slice_], lse[slice_], block_out, block_lse)
        return out, lse
    return _added(out, lse, block_out, block_lse)


def _added(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> tuple[Tensor, Tensor]:
    total = torch.logaddexp(lse, block_lse)
    # A row without a key so far has lse - total = -inf + inf: its weight is 0. NaN and +inf stay visible in out.
    old, new = (torch.exp(part - total).masked_fill(part == -torch.inf, 0.0) for part in (lse, block_lse))
    return out * old + block_out * new, total


@no_compile
def flatten_varlen_lse(lse: Tensor, cu_seqlens: Tensor) -> Tensor:
    """(sequences, heads, max_seqlen) -> (heads, tokens)."""
    pairs = enumerate(pairwise(read(cu_seqlens)))
    return torch.cat([lse[sequence, :, : stop - start] for sequence, (start, stop) in pairs], dim=1)


@no_compile
def unflatten_varlen_lse(lse: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """(tokens, heads, 1) -> (sequences, heads, max_seqlen); what is beyond a sequence's end is 0."""
    borders = read(cu_seqlens)
    unpacked = lse.new_zeros((len(borders) - 1, lse.shape[-2], max_seqlen), dtype=torch.float32)
    for sequence, (start, stop) in enumerate(pairwise(borders)):
        unpacked[sequence, :, : stop - start] = lse[start:stop].squeeze(-1).T
    return unpacked


@no_compile
def get_half_index(cu_seqlens: Tensor, *, front: bool) -> slice | Tensor:
    """The place of the first or the second halves of all sequences in the packed tokens: a slice for one, else a mask.

    cu_seqlens: (sequences + 1,) borders on this rank.
    """
    borders = read(cu_seqlens)
    middles = [(start + stop) // 2 for start, stop in pairwise(borders)]
    halves = zip(borders, middles, strict=False) if front else zip(middles, borders[1:], strict=True)
    parts = [slice(start, stop) for start, stop in halves]
    if len(parts) == 1:
        return parts[0]
    mask = torch.zeros(borders[-1], dtype=torch.bool)
    for part in parts:
        mask[part] = True
    return mask
