"""What a sharded model's outputs become: a loss and numbers per token that mean what they mean in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ringattn.agree import turn
from ringattn.hf.batch import ShardedBatch
from ringattn_comms.communicator import Communicator
from ringattn_comms.header import encoded

# Outputs with a vector for each token, which stay shards unless they are asked for as a whole.
PER_TOKEN = ("last_hidden_state", "logits", "hidden_states", "router_logits")


def gather_outputs(
    output: Any,
    batch: ShardedBatch,
    *,
    with_loss: bool,
    local_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
    whole: tuple[str, ...] = (),
) -> Any:
    """The output, a ModelOutput or a tuple, with the whole batch's loss and with whole numbers per token or target.

    local_loss: makes of the model's loss the one whose mean over ranks is the whole batch's.
    whole: which of `PER_TOKEN` are to be whole too; of a tuple, which has no names, only its first can be.
    """
    comm = batch.row.communicator
    if isinstance(output, tuple):
        loss = (mean_over_ranks(local_loss(output[0]), comm),) if with_loss else ()
        rest = output[len(loss) :]
        return (*loss, batch.unshard(rest[0]), *rest[1:]) if whole else (*loss, *rest)
    for name, value in output.items():
        if with_loss and name == "loss":
            output[name] = mean_over_ranks(local_loss(value), comm)
        elif name in whole:
            output[name] = (
                tuple(_vectors(x, batch) for x in value) if isinstance(value, tuple) else batch.unshard(value)
            )
        elif name == "router_logits":
            output[name] = tuple(value)  # which the router's loss alone needs to know the batch of
        elif isinstance(value, Tensor) and value.shape == (batch.rows, batch.local):
            output[name] = _numbers(value, batch)[:, : batch.targets]
    return output


def _vectors(x: Tensor, batch: ShardedBatch) -> Tensor:
    """The whole of one vector per token, (rows, local tokens, ...) or, as routers have them, (rows * local, ...)."""
    if x.dim() > 2:
        return batch.unshard(x)
    return batch.unshard(x.reshape(batch.rows, batch.local, -1)).flatten(0, 1)


def _numbers(x: Tensor, batch: ShardedBatch) -> Tensor:
    """The whole of one number per token, (rows, local tokens) -> (rows, tokens)."""
    # Not every backend moves booleans.
    return batch.unshard(x.to(torch.uint8)).bool() if x.dtype == torch.bool else batch.unshard(x)


def mean_over_ranks(loss: Tensor, comm: Communicator) -> Tensor:
    """The mean of all ranks' losses, or of the numbers that a loss is made of.

    Its gradient is the own loss's, so that gradients are averaged over ranks too. That is what DDP and FSDP do with
    them; without either, average the parameters' gradients over the group.
    """
    mean: Tensor = _Mean.apply(loss, comm)  # type: ignore[no-untyped-call]
    return mean


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(loss: Tensor, comm: Communicator) -> Tensor:
        with turn(
            comm, "mean of the losses", encoded((("shape", tuple(loss.shape)), ("dtype", loss.dtype))), loss.device
        ):
            mean = comm.all_gather(loss.reshape(-1)).wait().mean(dim=0)
        # No view: Trainer scales the loss in place.
        return mean.reshape(loss.shape).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Communicator], output: Tensor) -> None:
        """The adjoint needs nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
