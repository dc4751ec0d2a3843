"""The passes below autograd, `*_forward` and `*_backward`, beside the functions that autograd knows (30)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist

import processes
from adapters.hf import compare
from ringattn.compat import ring_flash_attn as rfa
from ringattn.compat.ring_flash_attn import stripe_flash_attn, zigzag_ring_flash_attn_varlen
from ringattn.compat.ring_flash_attn.ring_flash_attn import ring_flash_attn_backward, ring_flash_attn_forward
from ringattn_comms.backends import threads
from ringattn_comms.communicator import Communicator

GLOBAL = torch.tensor([0, 8, 24, 40], dtype=torch.int32)


def test_raw_passes() -> None:
    for found in processes.run(2, raw_passes):
        wrong = {name: error for name, error in found.items() if error > 1e-5}
        assert found and not wrong


def raw_passes() -> dict[str, float]:
    """Every module's forward and backward beside the function that autograd knows."""
    found, (rank, size) = {}, (dist.get_rank(), dist.get_world_size())
    prepared = rfa.llama3_flash_attn_prepare_cu_seqlens(GLOBAL, True, rank, size)
    told = (*prepared[:4], 1, prepared[4])
    local = GLOBAL // size
    halves = [zigzag_ring_flash_attn_varlen.get_half_index(local, front=front) for front in (True, False)]
    cases = {
        "ring_flash_attn": ((2, 12), (), ()),
        "zigzag_ring_flash_attn": ((2, 12), (), ()),
        "stripe_flash_attn": ((2, 12), (), ()),
        "ring_flash_attn_varlen": ((20,), (local, 8), (local, 8)),
        "zigzag_ring_flash_attn_varlen": ((20,), (local, 8), (local, 8, *halves)),
        "llama3_flash_attn_varlen": ((20,), told, told),
    }
    for name, window in product(cases, ((-1, -1), (5, 0))):
        rows, lengths, raw_lengths = cases[name]
        module = sys.modules[f"ringattn.compat.ring_flash_attn.{name}"]
        q, k, v = (torch.randn(*rows, heads, 8, requires_grad=True) for heads in (4, 2, 2))
        dout = torch.randn_like(q)
        func = getattr(rfa, f"{name}_func")
        out, lse, _ = func(q, k, v, *lengths, causal=True, window_size=window, return_attn_probs=True)
        grads = torch.autograd.grad(out, (q, k, v), dout)
        options = {"window_size": window}
        forward, backward = (getattr(module, f"{name}_{way}") for way in ("forward", "backward"))
        plain = [x.detach() for x in (q, k, v)]
        again = forward(None, *plain, *raw_lengths, None, **options)
        back = backward(None, dout, *plain, *again, *raw_lengths, None, **options)
        for kind, ours, expected in zip(
            ("out", "lse", "dq", "dk", "dv"), (*again, *back), (out, lse, *grads), strict=True
        ):
            found[f"{name} {window} {kind}"] = compare.relative(ours.detach(), expected.detach())
    with pytest.raises(ValueError, match="not the random numbers"):
        stripe_flash_attn.stripe_flash_attn_backward(None, *[q] * 6, 1.0, dropout_p=0.1)
    return found


@pytest.mark.parametrize("fault", [{"dropout_p": "x"}, {"v": None}], ids=str)
def test_what_one_rank_is_refused_all_are_told(fault: dict[str, Any]) -> None:
    x = torch.zeros(1, 4, 2, 8)

    def rank(comm: Communicator) -> str:
        given = {"q": x, "k": x, "v": x} | (fault if comm.rank else {})
        with pytest.raises((TypeError, ValueError)) as caught:
            ring_flash_attn_forward(comm, softmax_scale=0.3, **given)
        return str(caught.value)

    told, own = threads.run(2, rank, timeout=10)
    assert told.startswith("rank 1 refused its input") and own in told


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dout", lambda x: None),
        ("dout", lambda x: x[:, :, :1]),
        ("dout", lambda x: x.double()),
        ("out", lambda x: x[:, :2]),
        ("softmax_lse", lambda x: None),
        ("softmax_lse", lambda x: x.transpose(1, 2)),
    ],
)
def test_what_a_backward_pass_is_refused_all_are_told(name: str, change: Callable[[torch.Tensor], Any]) -> None:
    """One rank lacks or has cut what its forward pass returned."""
    x = torch.randn(1, 4, 2, 8)

    def rank(comm: Communicator) -> str:
        out, lse = ring_flash_attn_forward(comm, x, x, x, 0.3)
        given = {"dout": x, "out": out, "softmax_lse": lse}
        given[name] = change(given[name]) if comm.rank else given[name]
        with pytest.raises((TypeError, ValueError), match=name) as caught:
            ring_flash_attn_backward(comm, q=x, k=x, v=x, softmax_scale=0.3, **given)
        return str(caught.value)

    told, own = threads.run(2, rank, timeout=10)
    assert told.startswith("rank 1 refused its input") and own in told
