"""The layers of a model prepare one call together, and a call that differs in anything is prepared by itself."""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

import pytest
import torch

from ringattn import ContextParallel, attention, masks
from ringattn.call import CallSpec
from ringattn_comms.communicator import SingleRank


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[CallSpec]:
    """Every call that is prepared, in order."""
    specs: list[CallSpec] = []
    prepare = CallSpec.prepare

    def noted(spec: CallSpec, *arguments: Any, **options: Any) -> Any:
        specs.append(spec)
        return prepare(spec, *arguments, **options)

    monkeypatch.setattr(CallSpec, "prepare", noted)
    return specs


def drawn(tokens: int = 12, kv_heads: int = 2) -> list[torch.Tensor]:
    return [torch.randn(1, tokens, heads, 8) for heads in (4, kv_heads, kv_heads)]


def test_layers_with_masks_prepare_one_call_for_each(prepared) -> None:
    """A mask that is made anew is the same; that of a ContextParallel is asked for with the call."""
    cp = ContextParallel(SingleRank(), mask=masks.prefix(12, 5))
    for _ in range(3):
        attention(*drawn(), cp=cp)
        attention(*drawn(), cp=cp, mask=masks.prefix(12, 5))
        attention(*drawn(), cp=cp, mask=masks.window(12, 3))
        attention(*drawn(), cp=cp, mask=[masks.window(12, 4)])
    assert len(prepared) == 3


def test_layers_prepare_one_call_together(prepared) -> None:
    cp, borders = ContextParallel(SingleRank()), torch.tensor([0, 5, 12])
    for _ in range(3):
        attention(*drawn(), cp=cp, causal=True)
        attention(*drawn(), cp=cp, causal=True, window_size=(4, 0), cu_seqlens=borders)
    assert len(prepared) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"causal": False},
        {"window_size": (4, 0)},
        {"softcap": 5.0},
        {"softmax_scale": 0.5},
        {"return_lse": True},
        {"deterministic": True},
        {"cu_seqlens": [0, 5, 12]},
        {"sinks": torch.zeros(4)},
        {"mask": masks.prefix(12, 5), "causal": False},
        {"mask": [masks.causal(12)], "causal": False},
        {"cu_seqlens": [0, 5, 12], "cu_seqlens_k": [0, 6, 12]},
    ],
)
def test_other_options_are_another_call(prepared, other: dict[str, Any]) -> None:
    cp = ContextParallel(SingleRank())
    for options in ({}, other, {}, other):
        attention(*drawn(), cp=cp, **({"causal": True} | options))
    assert len(prepared) == 2


def test_other_tensors_are_another_call(prepared) -> None:
    cp, (q, k, v) = ContextParallel(SingleRank()), drawn()
    attention(q, k, v, cp=cp)
    for others in (drawn(6), drawn(kv_heads=1), [x.double() for x in (q, k, v)], (q.requires_grad_(), k, v)):
        before = len(prepared)
        attention(*others, cp=cp)
        assert len(prepared) == before + 1


def test_what_may_change_unseen_is_prepared_each_time(prepared, monkeypatch) -> None:
    cp, q = ContextParallel(SingleRank()), drawn()
    for _ in range(2):
        attention(*q, cp=cp, dropout_p=0.5)
        attention(*q, cp=cp, alibi_slopes=torch.ones(4))
    monkeypatch.setenv("RINGATTN_CHECK", "1")
    for _ in range(2):
        attention(*q, cp=cp)
    assert len(prepared) == 6


def test_borders_that_changed_in_place_are_seen(prepared) -> None:
    cp, borders, (q, k, v) = ContextParallel(SingleRank()), torch.tensor([0, 5, 12]), drawn()
    first = attention(q, k, v, cp=cp, cu_seqlens=borders)
    borders.data[1] = 7
    second = attention(q, k, v, cp=cp, cu_seqlens=borders)
    assert len(prepared) == 2 and not torch.equal(first, second)
    torch.testing.assert_close(second, attention(q, k, v, cu_seqlens=[0, 7, 12]))


def test_few_are_kept(prepared) -> None:
    cp, q = ContextParallel(SingleRank()), drawn()
    for left in (*range(6), 5, 0):
        attention(*q, cp=cp, window_size=(left, 0))
    assert [spec.window_size[0] for spec in prepared] == [0, 1, 2, 3, 4, 5, 0]
    assert len(cp.prepared._calls) == 4


def test_a_group_that_is_no_longer_used_is_freed_without_the_garbage_collector() -> None:
    cp, q = ContextParallel(SingleRank()), drawn()
    attention(*q, cp=cp)
    gone = ref(cp)
    gc.disable()
    try:
        del cp
        assert gone() is None
    finally:
        gc.enable()


def test_bad_input_is_refused_as_before(prepared) -> None:
    cp, q = ContextParallel(SingleRank()), drawn()
    attention(*q, cp=cp, window_size=[3, 0])
    with pytest.raises(TypeError, match=r"window_size must be \(left, right\)"):
        attention(*q, cp=cp, window_size=([3], 0))
    with pytest.raises(ValueError, match="contradict"):
        attention(*q, cp=cp, causal=True, window_size=(3, 3))
    attention(*q, cp=cp)
    with pytest.raises(ValueError, match="contradict"):
        attention(*q, cp=cp, causal=True, window_size=(3, 3))
