"""Compares the first batches of a model between ranks, which must all have the same batch, before they are sharded."""

from __future__ import annotations

from math import isclose
from typing import Any

import torch
from torch import Tensor

from ringattn.agree import turn
from ringattn_comms.communicator import Communicator
from ringattn_comms.header import encoded
from ringattn_core.run.streams import capturing

CALLS = 3  # A comparison waits for all ranks, and finds a wrong loader in its first batch.
_SAMPLES = 64
_COMPARED = ("input_ids", "inputs_embeds", "labels", "shift_labels", "attention_mask", "position_ids")

Fingerprint = tuple[tuple[int, ...], int | tuple[float, ...]]  # the shape of a tensor, and a checksum or samples


class FirstCalls:
    """Compares the arguments of one model's first calls."""

    def __init__(self) -> None:
        self.left = CALLS

    def check(self, arguments: dict[str, Any], comm: Communicator) -> None:
        """Raise ValueError if ranks have different batches. All ranks call this together. One rank compares nothing."""
        if self.left == 0 or comm.size == 1 or capturing():
            return
        self.left -= 1
        given = (arguments.get(name) for name in _COMPARED)
        own = tuple(_fingerprint(x) if isinstance(x, Tensor) else None for x in given)
        with turn(comm, "comparison of a model's first batches", encoded(()), torch.device("cpu")):
            said = comm.all_gather_object(own)
        for rank, others in enumerate(said):
            for name, first, other in zip(_COMPARED, said[0], others, strict=True):
                if not _alike(first, other):
                    raise ValueError(_lesson(name, first, other, rank, comm.size))


def _fingerprint(x: Tensor) -> Fingerprint:
    flat = x.detach().flatten()
    if x.is_floating_point():
        return tuple(x.shape), tuple(flat[:: max(1, len(flat) // _SAMPLES)].nan_to_num().tolist())
    return tuple(x.shape), int((flat * torch.arange(1, len(flat) + 1, device=x.device)).sum())


def _alike(first: Fingerprint | None, other: Fingerprint | None) -> bool:
    if first is None or other is None or first[0] != other[0]:
        return first == other
    ours, theirs = first[1], other[1]
    if isinstance(ours, int) or isinstance(theirs, int):
        return ours == theirs
    # Each rank computes embeddings with different rounding and dropout, so that only most values are close.
    close = sum(isclose(one, two, rel_tol=0.1) for one, two in zip(ours, theirs, strict=True))
    return 2 * close >= len(ours)


def _lesson(name: str, first: Fingerprint | None, other: Fingerprint | None, rank: int, size: int) -> str:
    shapes = ["missing" if each is None else f"of shape {each[0]}" for each in (first, other)]
    found = f"is {shapes[0]} on rank 0 and {shapes[1]} on rank {rank}"
    if shapes[0] == shapes[1]:
        found = f"has other values on rank {rank} than on rank 0"
    return (
        f"The {size} ranks of this group share each sequence, and got different batches: {name} {found}. Every rank "
        "passes the same whole batch, and the hook of ringattn.hf.parallelize leaves each its part. A sampler has to "
        f"count groups, not processes: DistributedSampler(data, num_replicas=world_size // {size}, rank=rank // "
        f"{size}) for groups of neighbours, or mesh['dp'].size() and mesh['dp'].get_local_rank() with a mesh."
    )
