"""Two processes with a GPU each: the battery over NCCL through PyTorch and through CuPy, and over symmetric memory."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist

import battery
import processes
from comms.test_communicator import CHECKS
from ringattn_comms.backends.torch_dist import TorchDist

needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason=f"{torch.cuda.device_count()} of 2 GPUs are here")


def missing(transport: str) -> str | None:
    """Why a transport cannot run here."""
    if transport == "cupy_nccl" and find_spec("cupy") is None:
        return "CuPy is not installed"
    if transport == "symmetric" and not torch.cuda.can_device_access_peer(0, 1):
        return "GPUs 0 and 1 have no access to each other's memory"
    return None


@cache
def seconds() -> list[dict[str, float]] | str:
    """How long each check took, by rank, or what was said when one failed: one pair of processes runs them all."""
    transports = [transport for transport in battery.TRANSPORTS if not missing(transport)]
    try:
        return processes.run(2, battery.run, transports, "cuda", timeout=250, backend="nccl")
    except (RuntimeError, TimeoutError) as error:
        return str(error)


@pytest.mark.gpu
@needs_two
@pytest.mark.parametrize("check", battery.BATTERY)
@pytest.mark.parametrize("transport", battery.TRANSPORTS)
def test_battery(transport: str, check: str) -> None:
    reason = missing(transport)
    if reason:
        pytest.skip(reason)
    took = seconds()
    assert not isinstance(took, str), took
    print(f"{max(rank[f'{transport} {check}'] for rank in took):.1f} s")


def split_twins() -> None:
    """The life of a process whose default group is bound to its device."""
    device = torch.device("cuda", dist.get_rank())
    for group in (None, dist.new_group([0, 1])):
        comm = TorchDist(group)
        second = comm.second_communicator(device)
        assert isinstance(second, TorchDist) and second.group is not None and second.group is not group
        for promise in CHECKS:
            with device:
                promise(second)


@pytest.mark.gpu
@needs_two
def test_groups_that_are_bound_to_a_device_are_split() -> None:
    processes.run(2, split_twins, timeout=100, backend="nccl", bound=True)
