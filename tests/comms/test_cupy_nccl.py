"""NCCL through CuPy, on processes without GPUs: every call that CuPy would get goes to a stand-in over gloo."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist

import battery
import gloo_nccl
import processes
from comms.test_communicator import CHECKS
from ringattn_comms.backends.cupy_nccl import CupyNccl


def over_a_stand_in() -> dict[str, float]:
    gloo_nccl.install()
    return battery.run(["cupy_nccl"], "cpu")


def test_battery() -> None:
    for took in processes.run(2, over_a_stand_in):
        assert len(took) == len(battery.BATTERY)


def meet_over_stores() -> None:
    gloo_nccl.install()
    rank, size = dist.get_rank(), dist.get_world_size()
    store = dist.PrefixStore("somewhere", dist.distributed_c10d._get_default_store())  # type: ignore[attr-defined]
    comms = [CupyNccl(store, rank, size), CupyNccl(store, rank, size), CupyNccl.of()]
    comms.append(comms[0].second_communicator(torch.device("cpu")))
    assert comms[0].second_communicator(torch.device("cpu")) is comms[-1]
    assert len({comm._comm.id for comm in comms}) == 4
    for comm in comms:
        for check in CHECKS:
            check(comm)
    for call in (comms[0].all_gather, comms[0].reduce_scatter, comms[0].all_to_all):
        with pytest.raises(TypeError, match=r"NCCL has no number for torch.complex64; it knows torch.int8, .*bfloat16"):
            call(torch.zeros(size, 2, dtype=torch.complex64))


def test_ranks_meet_over_any_store() -> None:
    """A communicator for every time that all ranks make one; no process group is asked for."""
    processes.run(3, meet_over_stores)


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    with pytest.raises(ImportError, match=r"needs CuPy, .* pip install 'ringattn-comms\[cupy\]'"):
        CupyNccl(dist.HashStore(), 0, 1)  # type: ignore[attr-defined]


def test_without_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cupy", "cupy.cuda", "cupy.cuda.nccl"):  # What `install` puts there is taken away again.
        monkeypatch.setitem(sys.modules, name, None)
    gloo_nccl.install()
    monkeypatch.setattr(gloo_nccl, "available", False)
    with pytest.raises(ImportError, match="needs NCCL, which CuPy did not find"):
        CupyNccl(dist.HashStore(), 0, 1)  # type: ignore[attr-defined]
