"""The wrapper of PyTorch's FlashAttention-2 over stand-ins for its operators, on CPUs: what it says to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import packages
from launches import launches, solve
from packages import Lengths, Mask
from ringattn_core.kernels.torch_flash_cuda import TorchFlashCuda
from ringattn_core.plan.layout import contiguous
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import ring
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import Tile
from ringattn_core.run.kernel import NO_OUT_GRADS, Options, Queries
from ringattn_core.run.transport import KV

SCALE = 0.3


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch) -> packages.Dense:
    """Dense attention in place of PyTorch's operators, with FlashAttention-2's rules for lengths and windows."""
    dense = packages.Dense(2)

    def mask(dropout_p: float, causal: bool, given: dict[str, Any]) -> Mask:
        window = given.get("window_size_left", -1), given.get("window_size_right", -1)
        return Mask(given["scale"], causal, window, 0.0, dropout_p)

    def forward(q: Tensor, k: Tensor, v: Tensor, *given: Any, **named: Any) -> tuple[Any, ...]:
        *lengths, dropout_p, causal, debug = given
        assert not debug
        found = dense.forward(q, k, v, _lengths(lengths), mask(dropout_p, causal, named))
        return *found, None, None

    def backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *given: Any, **named: Any):
        *lengths, dropout_p, causal, rng_state, _ = given
        tensors = dout, q, k, v, out, lse
        return dense.backward(tensors, _lengths(lengths), mask(dropout_p, causal, named), rng_state)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", backward)
    return dense


def _lengths(given: list[Any]) -> Lengths:
    return Lengths(*given) if given[0] is not None else Lengths()


def test_pytorch_has_the_operators_with_the_arguments_that_they_are_given() -> None:
    """The stand-ins take anything; what the installed PyTorch takes is in its schemas, which CPUs have too."""
    lengths = ["cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal"]
    taken = {
        "_flash_attention_forward": ["query", "key", "value", *lengths, "return_debug_mask"],
        "_flash_attention_backward": (
            ["grad_out", "query", "key", "value", "out", "logsumexp", *lengths, "rng_state", "unused"]
        ),
    }
    for name, positional in taken.items():
        arguments = getattr(torch.ops.aten, name).default._schema.arguments
        assert [each.name for each in arguments if not each.kwarg_only] == positional
        named = {each.name for each in arguments if each.kwarg_only}
        assert named >= {"scale", "window_size_left", "window_size_right"}


@pytest.mark.parametrize("seed", range(2))
def test_random_launches(dense: packages.Dense, seed: int) -> None:
    found = launches(24, seed)
    for launch, tokens_q, tokens_k in found:
        solve(TorchFlashCuda(), launch, tokens_q, tokens_k, Options(SCALE))
    kinds = {(mask.causal, mask.window, lengths.cu_seqlens_q is None) for lengths, mask in dense.calls}
    assert len({causal for causal, *_ in kinds}) == 2 and len(kinds) > 4


def test_rows_with_gaps_are_gathered(dense: packages.Dense) -> None:
    launch = Launch((Tile(range(5), range(2, 9)), Tile(range(8, 12), range(9, 12))))
    solve(TorchFlashCuda(), launch, 12, 12, Options(SCALE))
    for lengths, _ in dense.calls:
        assert lengths.cu_seqlens_q is not None and lengths.cu_seqlens_k is not None
        assert lengths.cu_seqlens_q.tolist() == [0, 5, 9] and lengths.cu_seqlens_k.tolist() == [0, 7, 10]


@pytest.mark.parametrize("borders", [(0, 40), (0, 15, 40)])
@pytest.mark.usefixtures("dense")
def test_dropout_is_replayed(borders: tuple[int, ...]) -> None:
    launch = plan(contiguous, ring, borders, borders, 0, 1).steps[0].launches[0]
    kernel, options = TorchFlashCuda(), Options(SCALE, dropout_p=0.4)
    q, kv = torch.randn(40, 2, 8), KV(torch.randn(40, 2, 8), torch.ones(40, 2, 8))
    block, rng_state = kernel.forward(q, kv, launch, options)
    assert rng_state is not None and kernel.forward(q, kv, launch, Options(SCALE))[1] is None
    queries = Queries(q, block.out, torch.ones(40, 2, 8), block.lse, None)
    grads = kernel.backward(queries, kv, launch, options, rng_state, NO_OUT_GRADS)
    torch.testing.assert_close(grads.dv.sum(0), block.out.sum(0))
