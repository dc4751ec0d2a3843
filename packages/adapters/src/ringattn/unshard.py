"""All tokens from every rank's share of them: an all-gather of unequal shares, with its gradient."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ringattn import agree
from ringattn_comms.communicator import Communicator
from ringattn_comms.header import encoded
from ringattn_core.plan.layout import Sharding
from ringattn_core.run.index import stream_index


def unshard(x: Tensor, sharding: Sharding, comm: Communicator) -> Tensor:
    """The shares of all ranks along dimension 0, in the order of the stream. Its gradient is summed over the ranks."""
    whole: Tensor = _Unshard.apply(x, _Gathering(x, sharding, comm))  # type: ignore[no-untyped-call]
    return whole


@lru_cache(16)
def lengths(sharding: Sharding) -> tuple[int, ...]:
    """How many tokens each rank holds, counted once: of many sequences it takes tens of milliseconds."""
    return tuple(map(sharding.length, range(sharding.cp_size)))


class _Gathering:
    """One `unshard`, with everything that its backward pass needs."""

    def __init__(self, x: Tensor, sharding: Sharding, comm: Communicator) -> None:
        self.sharding, self.comm = sharding, comm
        self.number: int | None = None  # by which all ranks know it, once it has run
        self.terms = encoded(
            (
                *(("shape", tuple(x.shape[1:])), ("dtype", x.dtype), ("layout", agree.named(sharding.layout))),
                ("cu_seqlens", sharding.cu_seqlens),
            )
        )


class _Unshard(torch.autograd.Function):
    """All-gather of unequal shares into stream order, along dimension 0; its gradient is summed over the ranks."""

    @staticmethod
    def forward(x: Tensor, run: _Gathering) -> Tensor:
        sharding, comm = run.sharding, run.comm
        padded = x.new_zeros((max(lengths(sharding)), *x.shape[1:]))
        padded[: len(x)] = x
        with agree.turn(comm, "unshard", run.terms, x.device) as run.number:
            gathered = comm.all_gather(padded).wait() if comm.size > 1 else padded[None]
        whole = x.new_empty((sharding.cu_seqlens[-1], *x.shape[1:]))
        for rank, length in enumerate(lengths(sharding)):
            whole[stream_index(sharding, rank, x.device)] = gathered[rank, :length]
        return whole

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Gathering], output: Tensor) -> None:
        ctx.run = inputs[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        sharding, comm = ctx.run.sharding, ctx.run.comm
        parts = grad.new_zeros((comm.size, max(lengths(sharding)), *grad.shape[1:]))
        for rank, length in enumerate(lengths(sharding)):
            parts[rank, :length] = grad[stream_index(sharding, rank, grad.device)]
        with agree.turn(comm, f"backward of {ctx.run.number}", ctx.run.terms, grad.device):
            own = comm.reduce_scatter(parts).wait() if comm.size > 1 else parts[0]
        return own[: lengths(sharding)[comm.rank]], None
