"""Ranks that ask for different attention are told so, before any keys travel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ringattn import ContextParallel, attention
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator
from ringattn_core import ring

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
        ({"dropout_p": 0.5}, "dropout is False on rank 0 and True on rank 1"),
        ({"dtype": torch.float64}, "dtype is torch.float32 on rank 0 and torch.float64 on rank 1"),
        ({"heads": 1}, "num_heads is 2 on rank 0 and 1 on rank 1"),
        ({"dim": 8}, "head_dim is 4 on rank 0 and 8 on rank 1"),
    ],
)
def test_what_ranks_are_told_has_to_be_the_same(on_others: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"The ranks of a group ask for different attention: {message}"):
        run(3, lambda comm: ask(comm, told(on_others)), timeout=10)


@pytest.mark.parametrize(
    ("on_others", "message"),
    [
        ({"tokens": 10}, r"cu_seqlens is \(0, 16\) on rank 0 and \(0, 20\) on rank 1"),
        ({"cu_seqlens": (0, 4, 16)}, r"cu_seqlens is \(0, 16\) on rank 0 and \(0, 4, 16\) on rank 1"),
    ],
)
def test_lengths_are_compared_where_the_environment_says_so(
    on_others: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGATTN_CHECK", "1")
    with pytest.raises(ValueError, match=message):
        run(2, lambda comm: ask(comm, told(on_others)), timeout=10)


class Counting(Communicator):
    """Counts how often it is asked for facts."""

    def __init__(self, inner: Communicator) -> None:
        self.inner, self.rank, self.size, self.asked = inner, inner.rank, inner.size, 0
        self.send_recv, self.all_gather = inner.send_recv, inner.all_gather  # type: ignore[method-assign]
        self.reduce_scatter, self.all_to_all = inner.reduce_scatter, inner.all_to_all  # type: ignore[method-assign]

    def send_recv(self, *_: Any) -> Any: ...

    all_gather = reduce_scatter = all_to_all = send_recv

    def facts(self, fact: Any, *, again: bool = False) -> tuple[Any, ...]:
        self.asked += again
        return self.inner.facts(fact, again=again)


@pytest.mark.parametrize(("wanted", "asked"), [("", 0), ("0", 0), ("1", 6)])
def test_all_calls_are_compared_only_where_that_is_wanted(
    wanted: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGATTN_CHECK", wanted)

    def main(comm: Communicator) -> int:
        counting = Counting(comm)
        ask(counting, told({}), calls=3)
        return counting.asked

    assert run(2, main, timeout=10) == [asked] * 2


def test_nobody_is_asked_where_there_is_one_rank() -> None:
    assert ask(_Mute(), told({})).shape == (1, 8, 2, 4)


class _Mute(Counting):
    def __init__(self) -> None:
        self.rank, self.size = 0, 1

    def facts(self, fact: Any, *, again: bool = False) -> tuple[Any, ...]:
        raise AssertionError("there is nobody else")
