"""Which routes "auto" is on GPUs, asked on tensors that are not there."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from ringattn import ContextParallel, agree, call
from ringattn_comms.communicator import Communicator, Work
from ringattn_comms.header import Header
from ringattn_core.look.auto import CANDIDATES
from ringattn_core.plan.route import Route


class Heard:
    """The headers of both ranks."""

    def __init__(self, rows: list[bytes]) -> None:
        self.rows = rows

    def ready(self) -> bool:
        return True

    def wait(self) -> list[bytes]:
        return self.rows


class Said(Communicator):
    """The first rank of two, of which nothing is known but whether they agree."""

    rank, size = 0, 2

    def __init__(self, alike: bool) -> None:
        self.alike, self.said = alike, list[Header]()

    def say(self, header: bytes) -> Heard:
        own = Header.decode(header)
        self.said.append(own)
        return Heard([header, (own if self.alike else own._replace(about=f"not {own.about}")).encode()])

    def send_recv(self, *_: object) -> Work:
        raise AssertionError("a plan moves nothing")

    all_gather = reduce_scatter = all_to_all = send_recv  # type: ignore[assignment]


def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch say that its devices are H100s."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    agree._facts.cache_clear()


def routes(comm: Said, monkeypatch: pytest.MonkeyPatch) -> tuple[Route, Route]:
    """Of a forward and a backward pass over 2,048 tokens."""
    h100(monkeypatch)
    cp = ContextParallel(comm, kernel="torch_flash")
    with FakeTensorMode():
        q, k, v = (torch.empty(1, 1024, heads, 128, device="cuda", dtype=torch.bfloat16) for heads in (8, 2, 2))
        request = call.CallSpec(cp, True, (-1, -1), 0.0, 128**-0.5, 0.0, deterministic=False, return_lse=False)
        planned = request.plan(q, k, v, None, None, 0)
    return planned.forward_pass.schedule.route, planned.backward_pass.schedule.route


def test_ranks_of_one_kind_take_what_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = Said(alike=True)
    assert routes(comm, monkeypatch) == (CANDIDATES["gather"],) * 2
    (header,) = comm.said  # An introduction, and a plan moves nothing else.
    assert header.action == "introduction" and "NVIDIA H100, " in header.about and "torch_flash" in header.about


def test_ranks_of_several_kinds_take_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their predictions differ, and ranks on different routes would wait for each other."""
    assert routes(Said(alike=False), monkeypatch) == (CANDIDATES["waves"],) * 2
