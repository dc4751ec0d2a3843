"""Compiled code that reads borders of packed sequences gets what plain code gets: they are known only as it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ringattn
from ringattn.compat.ring_flash_attn import (
    llama3_flash_attn_varlen,
    ring_flash_attn_varlen,
    utils,
    zigzag_ring_flash_attn_varlen,
)
from ringattn_comms.communicator import SingleRank

SOLO = SingleRank()
CP = ringattn.ContextParallel(SOLO)
BORDERS = torch.tensor([0, 7, 16], dtype=torch.int32)
Q, KV = torch.randn(16, 4, 8), torch.randn(16, 2, 2, 8)
QKV = torch.randn(16, 3, 2, 8)
ROW = torch.arange(16)[None]
PACKED = {"func": (Q, *KV.unbind(1)), "kvpacked_func": (Q, KV), "qkvpacked_func": (QKV,)}


def family(name: str) -> Callable[[Tensor], Any]:
    """A call of one of ring-flash-attention's functions for packed sequences, by its name."""
    prefix, packing = name.split("_varlen_")
    function, tensors = getattr(ringattn, name), PACKED[packing]

    def call(cu_seqlens: Tensor) -> Any:
        if prefix == "llama3_flash_attn":
            lengths = ringattn.llama3_flash_attn_prepare_cu_seqlens(cu_seqlens, True, 0, 1)
            return function(*tensors, *lengths[:4], 1, lengths[4], causal=True, group=SOLO)
        stride = (1,) if "llama3" in prefix else ()
        return function(*tensors, cu_seqlens, 9, *stride, causal=True, group=SOLO)

    return call


def passes(module: Any, name: str, lengths: Callable[[Tensor], tuple[Any, ...]]) -> Callable[[Tensor], Any]:
    """A call of the two passes below autograd."""
    forward, backward = (getattr(module, f"{name}_{way}") for way in ("forward", "backward"))

    def call(cu_seqlens: Tensor) -> Any:
        tensors = PACKED["func"]
        out, lse = forward(SOLO, *tensors, *lengths(cu_seqlens), 0.3)
        return out, lse, *backward(SOLO, out, *tensors, out, lse, *lengths(cu_seqlens), 0.3)

    return call


def prepared(cu_seqlens: Tensor) -> tuple[Any, ...]:
    q, k, longest_q, longest_k, keys = ringattn.llama3_flash_attn_prepare_cu_seqlens(cu_seqlens, True, 0, 1)
    return q, k, longest_q, longest_k, 1, keys


CALLS: dict[str, Callable[[Tensor], Any]] = {
    "a ContextParallel that is made": lambda cu: tuple(ringattn.ContextParallel(SOLO, cu_seqlens=cu).cu_seqlens or ()),
    "with_cu_seqlens": lambda cu: tuple(CP.with_cu_seqlens(cu).cu_seqlens or ()),
    "division": lambda cu: CP.with_cu_seqlens(cu).division(16).positions(0),
    "shard": lambda cu: CP.with_cu_seqlens(cu).shard(ROW),
    "unshard": lambda cu: CP.with_cu_seqlens(cu).unshard(ROW),
    "position_ids": lambda cu: CP.with_cu_seqlens(cu).position_ids(16),
    "shift_labels": lambda cu: CP.with_cu_seqlens(cu).shift_labels(ROW),
    "attention of a cp with borders": lambda cu: attend(CP.with_cu_seqlens(cu)),
    "attention": lambda cu: attend(CP, cu_seqlens=cu),
    "cross attention": lambda cu: attend(CP, cu_seqlens=cu, cu_seqlens_k=cu.clone()),
    "prepare": lambda cu: ringattn.llama3_flash_attn_prepare_cu_seqlens(cu, True, 1, 2),
    "get_half_index": lambda cu: zigzag_ring_flash_attn_varlen.get_half_index(cu, front=False),
    "flatten_varlen_lse": lambda cu: utils.flatten_varlen_lse(torch.arange(36.0).view(2, 2, 9), cu),
    "unflatten_varlen_lse": lambda cu: utils.unflatten_varlen_lse(torch.arange(32.0).view(16, 2, 1), cu, 9),
    "varlen passes": passes(ring_flash_attn_varlen, "ring_flash_attn_varlen", lambda cu: (cu, 9)),
    "llama3 passes": passes(llama3_flash_attn_varlen, "llama3_flash_attn_varlen", prepared),
} | {name: family(name) for name in ringattn.__all__ if "_varlen_" in name}


def attend(cp: ringattn.ContextParallel, **lengths: Any) -> Tensor:
    out: Tensor = ringattn.attention(*PACKED["func"], cp=cp, causal=True, **lengths)
    return out * 2


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("name", CALLS)
def test_borders_in_a_tensor(name: str) -> None:
    call = CALLS[name]
    compiled = torch.compile(call, backend="eager")
    for borders in (BORDERS, torch.tensor([0, 9, 16], dtype=torch.int32)):
        same(compiled(borders.clone()), call(borders))


@pytest.mark.parametrize("name", [name for name in ringattn.__all__ if "cu_seqlens" in name or "_varlen_func" in name])
def test_a_function_that_is_compiled_by_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile looks into a function that it gets even where it stays out of calls of it; numbers may be open."""
    call = family if "_varlen_" in name else lambda _: CALLS["prepare"]
    expected = call(name)(BORDERS)
    monkeypatch.setattr(ringattn, name, torch.compile(getattr(ringattn, name), backend="eager"))
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        same(call(name)(BORDERS), expected)
