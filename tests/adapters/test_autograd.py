"""What autograd, checkpointing, autocast and the compiler do with `attention`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import ringattn
from adapters.comms import Mute
from adapters.sharded import Answer, Whole, assert_exact, draw, errors, rows_of, truth
from ringattn import attention
from ringattn.context_parallel import ContextParallel
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator, SingleRank

PACKED = [0, 5, 5, 6, 20, 31]


Check = Callable[[Tensor, int], None]
"""Raises unless a tensor is this rank's share of the so-manieth field of the expected answer."""


def on_ranks(
    main: Callable[[ContextParallel, Whole, Check], None],
    whole: Whole,
    expected: Answer,
    cu_seqlens: Sequence[int] = PACKED,
) -> None:
    """Call main on three ranks, with this rank's tensors."""
    rows = rows_of(ContextParallel(cu_seqlens=cu_seqlens), cu_seqlens[-1], 3)

    def rank(comm: Communicator) -> None:
        own = rows[comm.rank]
        q, k, v, dout = (x.index_select(-3, own) for x in whole[:4])

        def check(found: Tensor, which: int) -> None:
            dim = -1 if which == 1 else -3
            assert (found - expected[which].index_select(dim, own)).abs().max() < 1e-11

        main(ContextParallel(comm, cu_seqlens=cu_seqlens), Whole(q, k, v, dout, whole.dlse[..., own]), check)

    run(3, rank)


@pytest.mark.parametrize("needed", list(product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("through", ["out", "lse", "both"])
def test_any_subset_of_inputs_and_outputs(needed: tuple[bool, ...], through: str) -> None:
    whole = draw(31)
    if through == "out":
        whole = whole._replace(dlse=whole.dlse * 0)
    if through == "lse":
        whole = whole._replace(dout=whole.dout * 0)

    def main(cp: ContextParallel, own: Whole, check: Check) -> None:
        leaves = [x.clone().requires_grad_(need) for x, need in zip(own[:3], needed, strict=True)]
        out, lse = attention(*leaves, cp=cp, causal=True, return_lse=True)
        assert out.requires_grad == lse.requires_grad == any(needed)
        if not any(needed):
            return
        used = {"out": [(out, own.dout)], "lse": [(lse, own.dlse)], "both": [(out, own.dout), (lse, own.dlse)]}[through]
        torch.autograd.backward(*zip(*used, strict=True))
        for which, x in enumerate(leaves, 2):
            assert (x.grad is not None) == x.requires_grad
            if x.grad is not None:
                check(x.grad, which)

    on_ranks(main, whole, truth(whole, PACKED, causal=True))


def test_gradcheck() -> None:
    """By finite differences, all options at once; not the oracle's word but the definition."""
    q, k, v = (x.clone().requires_grad_() for x in draw(5, (), heads=2, kv_heads=1, dim=2)[:3])
    sinks = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)

    def function(*x: Tensor) -> Any:
        torch.manual_seed(0)
        options = {"cu_seqlens": [0, 2, 5], "window_size": (3, 1), "softcap": 2.0, "dropout_p": 0.3}
        return attention(*x[:3], sinks=x[3], return_lse=True, **options)

    assert torch.autograd.gradcheck(function, (q, k, v, sinks))


def views() -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways in which a tensor can be something else than contiguous, from which the same numbers can be had."""
    return {
        "transposed": lambda x: x.transpose(-3, -2).contiguous().transpose(-3, -2),
        "sliced": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
        "reversed": lambda x: x.flip(-3).contiguous().flip(-3),
        "strided": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
        "permuted": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
    }


@pytest.mark.parametrize("view", views())
@pytest.mark.parametrize("batch", [(), (2,)], ids=["packed", "batch"])
def test_views(view: str, batch: tuple[int, ...]) -> None:
    """q, k, v and the gradient of out in any memory layout."""
    whole = draw(31, batch)

    def main(cp: ContextParallel, own: Whole, check: Check) -> None:
        leaves = [views()[view](x).detach().requires_grad_() for x in own[:3]]
        out, lse = attention(*leaves, cp=cp, causal=True, return_lse=True)
        check(out, 0)
        torch.autograd.backward((out, lse), (views()[view](own.dout), own.dlse))
        for which, x in enumerate(leaves, 2):
            assert x.grad is not None
            check(x.grad, which)

    on_ranks(main, whole, truth(whole, PACKED, causal=True))


def test_slices_of_one_projection() -> None:
    """q, k and v of one packed tensor, as a fused projection gives them; its gradient is one tensor again."""
    whole = draw(31, kv_heads=4)

    def main(cp: ContextParallel, own: Whole, check: Check) -> None:
        fused = torch.stack(own[:3], dim=2).flatten(2).requires_grad_()  # (batch, tokens, 3 * heads * head_dim)
        out, lse = attention(*fused.unflatten(2, (3, 4, 8)).unbind(2), cp=cp, causal=True, return_lse=True)
        torch.autograd.backward((out, lse), (own.dout, own.dlse))
        assert fused.grad is not None
        for which, grad in enumerate(fused.grad.unflatten(2, (3, 4, 8)).unbind(2), 2):
            check(grad, which)

    on_ranks(main, whole, truth(whole, PACKED, causal=True))


def test_expanded_gradients() -> None:
    """Those of a sum have stride 0 everywhere."""
    whole = draw(31)
    whole = whole._replace(dout=torch.ones_like(whole.dout), dlse=torch.ones_like(whole.dlse))

    def main(cp: ContextParallel, own: Whole, check: Check) -> None:
        leaves = [x.clone().requires_grad_() for x in own[:3]]
        out, lse = attention(*leaves, cp=cp, causal=True, return_lse=True)
        (out.sum() + lse.sum()).backward()
        for which, x in enumerate(leaves, 2):
            assert x.grad is not None
            check(x.grad, which)

    on_ranks(main, whole, truth(whole, PACKED, causal=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is saved, and what was cached meanwhile does not hurt a later backward pass."""
    # Threads would draw from one generator, and have to have one seed.
    monkeypatch.setattr(sys.modules["ringattn.call"], "drawn_seed", lambda dropout_p: 5)
    whole = draw(31)
    saved: list[Tensor] = []

    def main(cp: ContextParallel, own: Whole, check: Check) -> None:
        leaves = [x.clone().requires_grad_() for x in own[:3]]
        options = {"cp": cp, "causal": True, "alibi_slopes": torch.zeros(2, 4), "dropout_p": 1e-12}
        with mode(), torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            check(attention(*leaves, **options), 0)
        out, lse = attention(*leaves, return_lse=True, **options)
        torch.autograd.backward((out, lse), (own.dout, own.dlse))
        assert leaves[1].grad is not None
        check(leaves[1].grad, 3)

    on_ranks(main, whole, truth(whole, PACKED, causal=True))
    assert not saved


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    """Forward runs again in backward, and communicates again."""
    whole = draw(31)

    def main(cp: ContextParallel, own: Whole, check: Check) -> None:
        leaves = [x.clone().requires_grad_() for x in own[:3]]

        def layer(*x: Tensor) -> Any:
            return attention(*x, cp=cp, causal=True, return_lse=True)

        out, lse = checkpoint(layer, *leaves, use_reentrant=reentrant)
        torch.autograd.backward((out, lse), (own.dout, own.dlse))
        for which, x in enumerate(leaves, 2):
            assert x.grad is not None
            check(x.grad, which)

    on_ranks(main, whole, truth(whole, PACKED, causal=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_with_dropout(reentrant: bool) -> None:
    """The mask of the recomputation is that of the forward pass; on several ranks this is in test_processes.py."""

    def layer(*x: Tensor) -> Tensor:
        return attention(*x, dropout_p=0.5)

    found = []
    for call in (layer, lambda *x: checkpoint(layer, *x, use_reentrant=reentrant)):
        torch.manual_seed(7)
        leaves = [x.clone().requires_grad_() for x in draw(12)[:3]]
        out = call(*leaves)
        attention(*leaves, dropout_p=0.5)  # the generator goes on
        out.sum().backward()
        found.append([out, *(x.grad for x in leaves)])
    for plain, recomputed in zip(*found, strict=True):
        assert plain is not None and recomputed is not None and torch.equal(plain, recomputed)


def test_two_forwards_in_flight() -> None:
    """Backward passes go by the lengths and the mask of their own forward pass, in any order."""
    whole, borders, other = draw(24), [0, 12, 24], [0, 6, 24]
    first, second = truth(whole, borders, causal=True), truth(whole, other, window_size=(4, 4))

    def main(cp: ContextParallel, own: Whole, check: Check) -> None:
        leaves = [x.clone().requires_grad_() for x in own[:3]]
        # The tensor of lengths is changed in between: what was read before still holds for the first.
        lengths = torch.tensor(borders)
        early = attention(*leaves, cp=cp, causal=True, cu_seqlens=lengths, return_lse=True)
        lengths[1] = 6
        late = attention(*leaves, cp=cp, window_size=(4, 4), cu_seqlens=lengths)
        late.sum().backward()
        for which, grad in enumerate(torch.autograd.grad(early, leaves, (own.dout, own.dlse)), 2):
            check(grad, which)

    on_ranks(main, whole, first, borders)

    for order in ((0, 1), (1, 0)):
        leaves = [x.clone().requires_grad_() for x in whole[:3]]
        calls = [
            attention(*leaves, cu_seqlens=borders, causal=True, return_lse=True),
            attention(*leaves, cu_seqlens=other, window_size=(4, 4), return_lse=True),
        ]
        for at in order:
            grads = torch.autograd.grad(calls[at], leaves, (whole.dout, whole.dlse))
            expected = (first, second)[at]
            assert_exact(expected._replace(dq=grads[0], dk=grads[1], dv=grads[2]), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_of_gradients(dtype: torch.dtype) -> None:
    """They are those of the inputs; lse is float32, or float64 for float64, and so may be its gradient."""
    q, k, v = (x.clone().requires_grad_() for x in draw(12, dtype=dtype)[:3])
    sinks = torch.zeros(4, requires_grad=True)
    out, lse = attention(q, k, v, sinks=sinks, return_lse=True)
    (out.sum() + lse.sum()).backward()
    assert out.dtype == dtype and lse.dtype == torch.promote_types(dtype, torch.float32)
    assert [x.grad.dtype for x in (q, k, v) if x.grad is not None] == [dtype] * 3
    assert sinks.grad is not None and sinks.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """float32 inputs are cast as scaled_dot_product_attention's are; inside, float32 stays float32."""
    whole = draw(31, dtype=torch.float32)
    rounded = Whole(*(x.to(dtype).to(torch.float64) for x in whole[:4]), whole.dlse.to(torch.float64))
    expected = truth(rounded, PACKED, causal=True)
    leaves = [x.clone().requires_grad_() for x in whole[:3]]
    with torch.autocast("cpu", dtype):
        out, lse = attention(*leaves, cu_seqlens=PACKED, causal=True, return_lse=True)
        # Backward under autocast is discouraged, and happens; it changes nothing.
        inside = torch.autograd.grad((out, lse), leaves, (rounded.dout.to(dtype), whole.dlse), retain_graph=True)
    outside = torch.autograd.grad((out, lse), leaves, (rounded.dout.to(dtype), whole.dlse))
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert all(torch.equal(x, y) and x.dtype == torch.float32 for x, y in zip(inside, outside, strict=True))
    narrow = Whole(*(x.to(dtype) for x in whole[:4]), whole.dlse)
    fair = errors(truth(narrow, PACKED, causal=True, dtype=dtype), expected)
    found = errors(Answer(out, lse, *outside), expected)
    # lse was never rounded, to 2**-12 at best: products in low precision would show there first. PyTorch's kernel has
    # an exp of its own for low precision, which was 6e-5 off with AVX2.
    assert found.pop("lse") < 1e-4
    assert all(error <= 2 * fair[name] for name, error in found.items())


def test_autocast_leaves_float64_and_mixes_dtypes() -> None:
    q, k, v = draw(8)[:3]
    with torch.autocast("cpu"):
        assert attention(q, k, v).dtype == torch.float64
        assert attention(q.float(), k.bfloat16(), v.float()).dtype == torch.bfloat16


def test_double_backward_raises() -> None:
    """Also where only the inputs need a second derivative, which would silently be 0 else."""
    for needs in (False, True):
        q, k, v, dout = (x.clone().requires_grad_() for x in draw(6)[:4])
        dout.requires_grad_(needs)
        (grad,) = torch.autograd.grad(attention(q, k, v), q, dout, create_graph=True)
        with pytest.raises(RuntimeError, match=r"gradients of ringattn.attention cannot be differentiated"):
            (grad.square().sum() + q.sum()).backward()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend: str) -> None:
    """Lengths in a tensor break the graph once, whatever they are, and the planner is never traced."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    cp = ContextParallel(SingleRank())

    def layer(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
        return attention(2 * q, k, v, cp=cp, causal=True, cu_seqlens=cu_seqlens).sin()

    compiled = torch.compile(layer, backend=counter)
    for borders in (PACKED, [0, 0, 0, 1, 2, 31], [0, 6, 12, 18, 24, 31]):
        leaves, others = ([x.clone().requires_grad_() for x in draw(31)[:3]] for _ in range(2))
        found, expected = compiled(*leaves, torch.tensor(borders)), layer(*others, torch.tensor(borders))
        assert torch.equal(found, expected)
        found.sum().backward()
        expected.sum().backward()
        assert all(torch.equal(x.grad, y.grad) for x, y in zip(leaves, others, strict=True))
    assert counter.frame_count == 2, "what comes before the call, and what comes after"


def test_compile_of_shards() -> None:
    """`shard` and `position_ids` may stand in compiled code."""
    torch.compiler.reset()
    cp = ContextParallel(Mute(1, 2))

    def prepare(x: Tensor) -> Tensor:
        return cp.shard(x * 2) + cp.position_ids(x.shape[1])

    x = torch.randn(1, 16)
    assert torch.equal(torch.compile(prepare, backend="eager")(x), prepare(x))


def test_hooks_and_retained_graphs() -> None:
    """A graph that is kept can be walked twice; saved tensors may be moved by hooks."""
    q, k, v = (x.clone().requires_grad_() for x in draw(6)[:3])
    with torch.autograd.graph.save_on_cpu():
        out = attention(q, k, v, causal=True)
    (first,) = torch.autograd.grad(out.sum(), q, retain_graph=True)
    (second,) = torch.autograd.grad(out.sum(), q)
    assert torch.equal(first, second)


def test_changed_inputs_are_noticed() -> None:
    """What backward needs may not be overwritten in between."""
    q, k, v = (x.clone().requires_grad_() for x in draw(6)[:3])
    out = attention(q * 1, k, v)
    out_of_functions = ringattn.ring_flash_attn_func(q * 1, k, v, group=SingleRank())
    for result in (out, out_of_functions):
        result.detach().zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.sum().backward()
