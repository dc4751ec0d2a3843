"""The loss that every rank reports: that of the whole batch, with the gradient of this rank's share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ringattn_comms.communicator import Communicator


def mean_over_ranks(loss: Tensor, comm: Communicator) -> Tensor:
    """The mean of all ranks' losses. Its gradient is the own loss's, so that gradients are averaged over ranks too.

    That is what DDP and FSDP do with them; without either, average the parameters' gradients over the group.
    """
    mean: Tensor = _Mean.apply(loss, comm)  # type: ignore[no-untyped-call]
    return mean


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, comm: Communicator) -> Tensor:
        return comm.all_gather(loss.reshape(1)).wait().mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
