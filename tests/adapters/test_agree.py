"""Ranks that ask for different attention are told so before any keys travel; and what that costs in messages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.comms import Mute
from ringattn import ContextParallel, attention, zigzag_ring_flash_attn_func
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator
from ringattn_comms.header import DisagreementError
from ringattn_core import ring
from ringattn_core.run.streams import rank_of_thread

Told = Callable[[int], dict[str, Any]]


def told(on_others: dict[str, Any]) -> Told:
    """Something else on every rank but the first."""
    return lambda rank: on_others if rank else {}


def ask(comm: Communicator, told: Told, calls: int = 1) -> Tensor:
    options = {"layout": "zigzag", "route": "waves", "dtype": torch.float32, "tokens": 8, "heads": 2, "dim": 4}
    options |= told(comm.rank)
    shape, dtype = (1, options.pop("tokens"), options.pop("heads"), options.pop("dim")), options.pop("dtype")
    q, k, v = (torch.ones(shape, dtype=dtype) for _ in range(3))
    names = "layout", "route", "per_sequence", "head_groups", "cu_seqlens"
    cp = ContextParallel(comm, **{name: options.pop(name) for name in names if name in options})
    for _ in range(calls):
        out = attention(q, k, v, cp=cp, **options)
    return out


def mine(extent: range, cp_rank: int, cp_size: int) -> tuple[range, ...]:
    """The striped layout, under another name."""
    return (extent[cp_rank::cp_size],)


def other(extent: range, cp_rank: int, cp_size: int) -> tuple[range, ...]:
    """The same from the other end, and under the name of `mine`: see `test_what_ranks_are_told`."""
    return (extent[cp_size - 1 - cp_rank :: cp_size],)


other.__name__ = "mine"


@pytest.mark.parametrize(
    ("on_others", "message"),
    [
        ({"causal": True}, r"mask is \(-1, -1\) on rank 0 and \(-1, 0\) on rank 1"),
        ({"window_size": (4, 0)}, r"mask is \(-1, -1\) on rank 0 and \(4, 0\) on rank 1"),
        ({"layout": "contiguous"}, "layout is zigzag on rank 0 and contiguous on rank 1"),
        ({"layout": "windowed(4)"}, r"layout is zigzag on rank 0 and windowed\(4\) on rank 1"),
        ({"route": "gather"}, r"route is waves\(2\) on rank 0 and gather on rank 1"),
        ({"route": ring}, r"route is waves\(2\) on rank 0 and ring on rank 1"),
        ({"head_groups": 2}, "head_groups is 1 on rank 0 and 2 on rank 1"),
        ({"per_sequence": False}, "per_sequence is True on rank 0 and False on rank 1"),
        ({"dropout_p": 0.5}, r"dropout is 0\.0 on rank 0 and 0\.5 on rank 1"),
        ({"dtype": torch.float64}, "dtype is torch.float32 on rank 0 and torch.float64 on rank 1"),
        ({"heads": 1}, "num_heads is 2 on rank 0 and 1 on rank 1"),
        ({"dim": 8}, "head_dim is 4 on rank 0 and 8 on rank 1"),
        ({"tokens": 10}, r"cu_seqlens is \(0, 16\) on rank 0 and \(0, 20\) on rank 1"),
        ({"cu_seqlens": (0, 4, 16)}, r"cu_seqlens is \(0, 16\) on rank 0 and \(0, 4, 16\) on rank 1"),
        ({"softmax_scale": 0.25}, r"softmax_scale is 0\.5 on rank 0 and 0\.25 on rank 1"),
        ({"softcap": 5.0}, r"softcap is 0\.0 on rank 0 and 5\.0 on rank 1"),
        ({"sinks": torch.zeros(2)}, r"sinks is none on rank 0 and \(2,\) on rank 1"),
        ({"alibi_slopes": torch.zeros(1, 2)}, r"alibi_slopes is none on rank 0 and \(1, 2\) on rank 1"),
        ({"deterministic": True}, "deterministic is False on rank 0 and True on rank 1"),
    ],
)
def test_what_ranks_are_told_has_to_be_the_same(on_others: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"The ranks of a group ask for different attention: {message}"):
        run(2, lambda comm: ask(comm, told(on_others)), timeout=10)


def test_layouts_of_one_name_are_told_apart() -> None:
    layouts = lambda rank: {"layout": other if rank else mine}  # noqa: E731
    with pytest.raises(ValueError, match=r"functions is [0-9a-f]{16} on rank 0 and [0-9a-f]{16} on rank 1"):
        run(2, lambda comm: ask(comm, layouts), timeout=10)


def test_seeds_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share a generator, from which each would draw another one: here it is the rank's number."""
    monkeypatch.setattr(sys.modules["ringattn.call"], "drawn_seed", lambda dropout_p: rank_of_thread())
    with pytest.raises(ValueError, match="seed is 0 on rank 0 and 1 on rank 1"):
        run(2, lambda comm: ask(comm, lambda rank: {"dropout_p": 0.5}), timeout=10)


@pytest.mark.parametrize("what", ["sinks", "alibi_slopes"])
def test_contents_are_compared_where_the_environment_says_so(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = lambda rank: {what: torch.full((2,), float(rank > 1))}  # noqa: E731
    run(3, lambda comm: ask(comm, values), timeout=10)
    monkeypatch.setenv("RINGATTN_CHECK", "1")
    with pytest.raises(ValueError, match=rf"{what} is \(2,\), hash \w+ on rank 0 and \(2,\), hash \w+ on rank 2"):
        run(3, lambda comm: ask(comm, values), timeout=10)


def test_what_shard_is_given_is_compared_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(comm: Communicator) -> None:
        ContextParallel(comm).shard(torch.full((1, 8), 1.0), torch.full((1, 8), float(comm.rank)))

    run(2, main, timeout=10)
    monkeypatch.setenv("RINGATTN_CHECK", "1")
    with pytest.raises(ValueError, match=r"tensor 1 of shard is .* on rank 0 and .* on rank 1"):
        run(2, main, timeout=10)


def test_how_many_tensors_are_sharded_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGATTN_CHECK", "1")
    for more in (0, 1):
        with pytest.raises(ValueError, match=r"tensor 1 of shard is .* on rank 0 and .* on rank 1"):
            run(2, lambda comm, more=more: ContextParallel(comm).shard(*[torch.ones(1, 8)] * (1 + (comm.rank == more))))


@pytest.mark.parametrize("calls", [1, 3])
def test_a_pass_costs_one_header_whatever_was_asked_before(calls: int) -> None:
    """And nothing else is sent to agree: `Mute` fails the test in every other call."""
    comm = Mute(0, 2)
    for call in range(calls):
        with pytest.raises(AssertionError, match="rank 0 called send_recv"):
            ask(comm, told({}) if call < 2 else lambda rank: {"causal": True})
    assert [(header.number, header.action) for header in comm.said] == [(n, "forward") for n in range(calls)]


def test_a_rank_that_refuses_tells_the_others_once() -> None:
    comm = Mute(0, 2)
    with pytest.raises(ValueError, match="softcap must be positive"):
        ask(comm, lambda rank: {"softcap": -1.0})
    assert [(header.action, header.refused.partition(",")[0]) for header in comm.said] == [
        ("refusal", "ValueError: softcap must be positive")
    ]


def test_a_window_that_a_function_of_ring_flash_attention_refuses_is_told_too() -> None:
    comm, q = Mute(0, 2), torch.zeros(1, 8, 2, 4)
    with pytest.raises(TypeError, match="window_size must be"):
        zigzag_ring_flash_attn_func(q, q, q, window_size=("wide", 0), group=comm)
    (header,) = comm.said
    assert header.action == "refusal" and "window_size must be" in header.refused


def test_a_disagreement_is_forgotten() -> None:
    """Ranks that caught the error make the call again, alike this time."""

    def main(comm: Communicator) -> bool:
        with pytest.raises(DisagreementError):
            ask(comm, told({"causal": True}))
        return torch.allclose(ask(comm, told({})), torch.ones(1, 8, 2, 4))

    assert run(3, main, timeout=10) == [True] * 3


def test_one_rank_asks_nobody() -> None:
    comm = Mute(0, 1)
    assert ask(comm, told({})).shape == (1, 8, 2, 4) and not comm.said


def test_a_shard_that_one_rank_is_refused_is_told_where_all_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGATTN_CHECK", "1")

    def main(comm: Communicator) -> str:
        try:
            ContextParallel(comm).shard(torch.zeros(1, 8 - comm.rank))
        except ValueError as error:
            return str(error)
        return "nothing"

    first, second = run(2, main, timeout=10)
    assert "does not divide 7 tokens evenly among 2 ranks" in second
    assert first.startswith("rank 1 refused its input: ValueError: This layout does not divide 7 tokens")
