"""To prepare a call is the work of one rank: it communicates nothing, and what ranks agree on is a step by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from adapters.test_schedules import Said, h100
from ringattn import ContextParallel, agree
from ringattn.agree import Peers
from ringattn.call import Call, CallSpec
from ringattn_comms.communicator import Communicator, Work
from ringattn_comms.header import encoded
from ringattn_core.look.auto import CANDIDATES


class Unusable(Communicator):
    """A rank's end of a group that fails whatever it is used for: it has a rank and a size, and no more."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def fail(self, *_: object) -> Any:
        raise AssertionError(f"rank {self.rank} used its communicator")

    def send_recv(self, *_: object) -> Work:
        return self.fail()

    all_gather = reduce_scatter = all_to_all = send_recv  # type: ignore[assignment]
    say = all_gather_object = shared_buffers = second_communicator = waits = fail  # type: ignore[assignment]
    agreement = property(fail)


def prepare(comm: Communicator, *, device: str = "cpu", peers: Peers = agree.UNKNOWN, **options: Any) -> Call:
    """A causal call over the shares of 1,024 tokens a rank, on tensors without memory where they are on a GPU."""
    window = options.pop("window_size", (-1, -1))
    spec = CallSpec(ContextParallel(comm, **options), True, window, 0.0, 0.125, 0.0, False, False)
    with FakeTensorMode():
        shapes = ((1, 1024, heads, 64) for heads in (4, 2, 2))
        q, k, v = (torch.empty(shape, device=device, dtype=torch.bfloat16) for shape in shapes)
        return spec.prepare(q, k, v, peers=peers)


@pytest.mark.parametrize("route", ["auto", "ring", "waves", "gather", "waves(3)", "double_ring(2)"])
@pytest.mark.parametrize("layout", ["zigzag", "balanced", "windowed(512)"])
def test_to_prepare_a_call_communicates_nothing(layout: str, route: str) -> None:
    calls = [prepare(Unusable(rank, 4), layout=layout, route=route) for rank in range(4)]
    assert [call.forward_pass.schedule.cp_rank for call in calls] == [0, 1, 2, 3]
    assert len({call.terms for call in calls}) == 1  # what the ranks compare before each pass
    assert len({prepare(Unusable(0, 4), layout=layout, route=route, head_groups=2).terms, calls[0].terms}) == 2


def test_to_refuse_a_call_communicates_nothing() -> None:
    with pytest.raises(ValueError, match=r"causal=True and window_size=\(1, 1\) contradict each other"):
        prepare(Unusable(0, 2), window_size=(1, 1))
    with pytest.raises(ValueError, match="head_groups must divide num_kv_heads"):
        prepare(Unusable(0, 2), head_groups=3)


def test_auto_is_chosen_from_what_is_known_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU too nothing is asked: without knowledge of the others it is "waves"."""
    h100(monkeypatch)

    def route(peers: Peers) -> object:
        call = prepare(Unusable(0, 2), device="cuda", kernel="torch_flash", peers=peers)
        return call.forward_pass.schedule.route

    assert route(agree.UNKNOWN) is CANDIDATES["waves"]
    assert route(Peers(alike=True, one_sided=False)) is CANDIDATES["gather"]


def test_ranks_introduce_themselves_once_and_only_for_auto_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    h100(monkeypatch)
    comm = Said(alike=True)
    device = torch.device("cuda", 0)
    assert agree.peers(comm, device) is None
    told = agree.introduce(comm, device, encoded((("route", "auto"),)))
    assert told == agree.introduce(comm, device, b"{}") == agree.peers(comm, device) == Peers(True, False)
    assert [header.action for header in comm.said] == ["introduction"]
    assert agree.peers(Unusable(0, 2), torch.device("cpu")) == agree.UNKNOWN
    assert agree.peers(Unusable(0, 1), device) == agree.UNKNOWN


def test_bad_input_is_refused_before_the_ranks_introduce_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    h100(monkeypatch)
    comm = Said(alike=True)
    spec = CallSpec(ContextParallel(comm), True, (1, 1), 0.0, 0.125, 0.0, False, False)
    with FakeTensorMode():
        q = torch.empty(1, 1024, 4, 64, device="cuda", dtype=torch.bfloat16)
        with pytest.raises(ValueError, match="contradict each other"):
            spec.plan(q, q, q, None, None, 0)
    (header,) = comm.said
    assert header.action == "refusal" and "contradict each other" in header.refused
