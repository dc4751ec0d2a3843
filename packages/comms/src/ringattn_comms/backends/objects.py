"""What every rank of a process group says: `dist.all_gather_object` without NumPy, which PyTorch does not require."""

from __future__ import annotations

import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_objects(group: dist.ProcessGroup | None, own: object) -> list[Any]:
    """Every rank's object, in rank order. All ranks ask together.

    own: what pickle takes. It is unpickled on every rank, so a group has to be made of processes that trust each other.
    """
    # The group says "cpu:gloo,cuda:nccl": objects come from the host, and travel by its backend where there is one.
    on_host = "cpu:" in dist.get_backend_config(group)
    device = torch.device("cpu") if on_host else torch.device("cuda", torch.cuda.current_device())
    message = torch.frombuffer(bytearray(pickle.dumps(own)), dtype=torch.uint8)
    lengths = [int(length) for length in _gather(torch.tensor([len(message)], device=device), group)]
    padded = message.new_zeros(max(lengths))
    padded[: len(message)] = message
    arrived = _gather(padded.to(device), group)
    return [pickle.loads(bytes(x[:length].tolist())) for x, length in zip(arrived, lengths, strict=True)]


def _gather(x: Tensor, group: dist.ProcessGroup | None) -> list[Tensor]:
    arriving = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(arriving, x, group=group)
    return arriving
