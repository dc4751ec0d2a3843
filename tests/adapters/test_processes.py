"""The functions on real processes, connected by torch.distributed: the same answers, whatever the group."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.checkpoint import checkpoint

import processes
import ringattn
from adapters.sharded import (
    FAMILIES,
    LLAMA3,
    RING,
    ZIGZAG,
    ZIGZAG_VARLEN,
    Family,
    at,
    attend_on,
    draw,
    dropped,
    errors,
    problem,
    truth,
)
from ringattn import attention
from ringattn.context_parallel import ContextParallel
from ringattn_comms.connect import Group, communicator

Check = dict[str, float]


@pytest.mark.parametrize("size", [2, 3])
def test_every_family(size: int) -> None:
    """The default group, by name of None."""
    for found in processes.run(size, all_families):
        assert all(error <= 1e-11 for error in found.values()), found


def all_families() -> Check:
    found = dict[str, float]()
    for family, causal in product(FAMILIES, (False, True)):
        found |= compare(family, None, causal=causal, window_size=(-1, -1) if causal else (4, 1))
    return found


def test_groups_and_meshes() -> None:
    """3: sub-groups of non-contiguous global ranks, one-dimensional meshes; and what is refused."""
    for found in processes.run(4, groups_and_meshes):
        assert all(error <= 1e-11 for error in found.values()), found


def groups_and_meshes() -> Check:
    rank, x = dist.get_rank(), draw(6)
    groups = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3], [0, 1, 3])]
    found: Check = {}
    for family in (RING, ZIGZAG_VARLEN, LLAMA3):
        found |= compare(family, groups[rank % 2])
        if rank != 2:
            found |= compare(family, groups[2])
    if rank == 2:
        with pytest.raises(ValueError, match=r"global rank 2.*is not in the group that was given"):
            ringattn.ring_flash_attn_func(*x[:3], group=groups[2])
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "cp"))
    found |= compare(ZIGZAG, mesh["cp"])
    with pytest.raises(ValueError, match=r"2 dimensions.*'dp', 'cp'.*mesh\[\"cp\"\]"):
        ringattn.ring_flash_attn_func(*x[:3], group=mesh)
    return found


def test_dropout() -> None:
    """Every number of ranks and every layout has the mask that one rank alone has, from the same seed."""
    for size in (2, 3):
        for found in processes.run(size, dropout):
            assert all(error <= 1e-11 for error in found.values()), found


def dropout() -> Check:
    whole, found = draw(30), dict[str, float]()
    torch.manual_seed(5)
    kept = dropped(whole, 0.4)
    assert 0.3 < (kept == 0).to(torch.float64).mean() < 0.5
    expected = truth(whole, causal=True, kept=kept)
    for (layout, route), recomputed in product((("zigzag", "ring"), ("striped", "waves")), (None, False, True)):
        cp = ContextParallel(layout=layout, route=route, cu_seqlens=[0, 30])
        call = partial(attention, cp=cp, causal=True, dropout_p=0.4, return_lse=True)

        def attend(*x: Any, call: Any = call, reentrant: bool | None = recomputed) -> tuple[Tensor, Tensor]:
            return call(*x[:3]) if reentrant is None else checkpoint(call, *x[:3], use_reentrant=reentrant)

        torch.manual_seed(5)
        rows = cp.shard(torch.arange(30), dim=0)
        own = attend_on(cp.communicator, attend, whole, rows, rows)
        found |= {f"{layout} {route} {recomputed} {name}": e for name, e in errors(own, at(expected, rows)).items()}
    return found


def test_unshard() -> None:
    """Whole tensors come back on every rank, with a gradient that is the sum of all ranks' gradients."""
    assert all(processes.run(3, unshard))


def unshard() -> bool:
    cp = ContextParallel(cu_seqlens=[0, 7, 7, 17])
    x = torch.randn(2, 17, 3, generator=torch.Generator().manual_seed(1))
    own = cp.shard(x).requires_grad_()
    whole = cp.unshard(own)
    assert torch.equal(whole, x)
    assert torch.equal(cp.unshard(cp.position_ids(17))[0], torch.tensor([*range(7), *range(10)]))
    weight = torch.arange(17.0)[None, :, None] * (cp.cp_rank + 1)
    (whole * weight).sum().backward()
    expected = (torch.arange(17.0)[None, :, None] * 6).expand_as(x)
    return torch.equal(own.grad, cp.shard(expected)) if own.grad is not None else False


def compare(family: Family, group: Group, **options: Any) -> Check:
    """How far this rank's answer is from the oracle's."""
    comm = communicator(group)
    whole, cu_seqlens = problem(family, comm.size)
    rows = family.rows(cu_seqlens, comm.size)[comm.rank]
    own = attend_on(comm, family.attend(cu_seqlens, group=group, **options), whole, rows, rows)
    expected = truth(whole, cu_seqlens if family.packed else None, **options)
    return {f"{family} {options} {name}": error for name, error in errors(own, at(expected, rows)).items()}
