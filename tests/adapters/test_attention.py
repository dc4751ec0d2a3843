"""The native call: every option, on several ranks, against the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import ringattn
from adapters.comms import Mute
from adapters.sharded import (
    Whole,
    assert_exact,
    draw,
    dropped,
    errors,
    rows_of,
    solve,
    solve_native,
    truth,
)
from ringattn import attention
from ringattn.context_parallel import ContextParallel
from ringattn_comms.backends.threads import Threads, run
from ringattn_comms.communicator import Communicator, SingleRank

PACKED = [0, 5, 5, 6, 20, 31]  # an empty sequence, one of one token, none that divides

layouts = pytest.mark.parametrize("layout", ["zigzag", "contiguous", "striped"])
sizes = pytest.mark.parametrize("size", [1, 2, 3])


@pytest.mark.parametrize(
    "options",
    [
        {"causal": True},
        {"window_size": (3, 0)},
        {"window_size": (2, 4)},
        {"window_size": (3, -1), "causal": True},
        {"softcap": 1.5, "causal": True},
        {"softmax_scale": 0.0},
        {"softmax_scale": 0.3, "causal": True},
        {"softmax_scale": -0.5, "causal": True},
        {"deterministic": True},
    ],
    ids=str,
)
@layouts
@sizes
def test_options(size: int, layout: str, options: dict[str, Any]) -> None:
    for whole, cu_seqlens in ((draw(12 * size), None), (draw(31, ()), PACKED), (draw(31), PACKED)):
        found = solve_native(size, whole, layout=layout, cu_seqlens=cu_seqlens, **options)
        options = {name: value for name, value in options.items() if name != "deterministic"}
        assert_exact(found, truth(whole, cu_seqlens, **options))


@pytest.mark.parametrize("route", ["auto", "ring", "waves", "waves(3)", "gather", "double_ring(2)"])
@pytest.mark.parametrize("head_groups", [1, 2])
@pytest.mark.parametrize("per_sequence", [True, False])
def test_routes(route: str, head_groups: int, per_sequence: bool) -> None:
    whole = draw(31)
    how = {"route": route, "head_groups": head_groups, "per_sequence": per_sequence}
    found = solve_native(4, whole, cu_seqlens=PACKED, causal=True, **how)
    assert_exact(found, truth(whole, PACKED, causal=True))


@layouts
@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"window_size": (2, 0)}, {"alibi_slopes": True}], ids=str)
def test_sinks(layout: str, options: dict[str, Any]) -> None:
    """Sinks with their gradient: the ranks' shares add up to it."""
    options = {name: torch.rand(4, dtype=torch.float64) if value is True else value for name, value in options.items()}
    whole, sinks = draw(31, ()), torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    expected = truth(whole, PACKED, sinks=sinks.detach(), **options)
    q, k, v = (x.clone().requires_grad_() for x in whole[:3])
    rows = rows_of(ContextParallel(None, layout, cu_seqlens=PACKED), 31, 3)
    shares = [sinks.detach().clone().requires_grad_() for _ in range(3)]

    def attend(q: Tensor, k: Tensor, v: Tensor, comm: Communicator) -> tuple[Tensor, Tensor]:
        cp = ContextParallel(comm, layout, cu_seqlens=PACKED)
        return attention(q, k, v, cp=cp, sinks=shares[comm.rank], return_lse=True, **options)

    assert_exact(solve(3, attend, whole, rows), expected)
    out, lse = attention(q, k, v, cu_seqlens=PACKED, sinks=sinks, return_lse=True, **options)
    (plain,) = torch.autograd.grad((out, lse), sinks, (whole.dout, whole.dlse))
    summed = sum(share.grad for share in shares if share.grad is not None)
    assert isinstance(summed, Tensor) and (summed - plain).abs().max() < 1e-11
    assert (plain - by_differences(lambda x: loss_of(whole, sinks=x, **options), sinks.detach())).abs().max() < 1e-6


def loss_of(whole: Whole, **options: Any) -> float:
    answer = truth(whole, PACKED, **options)
    return float((answer.out * whole.dout).sum() + (answer.lse * whole.dlse).sum())


def by_differences(function: Any, x: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of a function of a vector, measured."""
    steps = torch.eye(len(x), dtype=x.dtype) * step
    return torch.tensor([(function(x + d) - function(x - d)) / (2 * step) for d in steps], dtype=x.dtype)


@layouts
@pytest.mark.parametrize("shape", [(4,), (2, 4)], ids=str)
@pytest.mark.parametrize("cu_seqlens", [None, PACKED], ids=["whole", "packed"])
def test_alibi(layout: str, shape: tuple[int, ...], cu_seqlens: Sequence[int] | None) -> None:
    """Slopes for each head, and for each row of the batch; distances are global positions."""
    slopes = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = draw(31 if cu_seqlens else 36)
    for options in ({"causal": True}, {"window_size": (5, 2)}):
        found = solve_native(3, whole, layout=layout, cu_seqlens=cu_seqlens, alibi_slopes=slopes, **options)
        assert_exact(found, truth(whole, cu_seqlens, alibi_slopes=slopes, **options))


def test_alibi_of_one_packed_row() -> None:
    whole, slopes = draw(31, ()), torch.rand(1, 4, dtype=torch.float64)
    found = solve_native(2, whole, cu_seqlens=PACKED, alibi_slopes=slopes)
    assert_exact(found, truth(whole, PACKED, alibi_slopes=slopes[0]))


@layouts
@pytest.mark.parametrize("per_sequence", [True, False])
@pytest.mark.parametrize("rows", [(), (2,)], ids=str)
def test_alibi_of_every_sequence(layout: str, per_sequence: bool, rows: tuple[int, ...]) -> None:
    """As flash_attn_varlen_func takes it; of a batch the sequences of all rows."""
    whole, sequences = draw(31, rows), len(PACKED) - 1
    slopes = torch.rand(sequences * (2 if rows else 1), 4, dtype=torch.float64)
    lengths = torch.tensor(PACKED).diff()
    by_token = [each.repeat_interleave(lengths, dim=0) for each in slopes.split(sequences)]
    found = solve_native(
        *(3, whole), layout=layout, per_sequence=per_sequence, cu_seqlens=PACKED, causal=True, alibi_slopes=slopes
    )
    expected = truth(whole, PACKED, causal=True, alibi_slopes=torch.stack(by_token) if rows else by_token[0])
    assert_exact(found, expected)


@layouts
@sizes
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window_size": (4, 0), "softcap": 3.0}], ids=str)
def test_dropout(size: int, layout: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One mask for every number of ranks and every layout, forward and backward."""
    # Threads share one generator; on processes the seed is drawn for real, in test_processes.py.
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(1234))
    for whole, cu_seqlens in ((draw(12 * size), None), (draw(31), PACKED)):
        kept = dropped(whole, 0.3)
        assert ((kept == 0) | ((kept - 1 / 0.7).abs() < 1e-12)).all()
        found = solve_native(size, whole, layout=layout, cu_seqlens=cu_seqlens, dropout_p=0.3, **options)
        assert_exact(found, truth(whole, cu_seqlens, kept=kept, **options))


def test_dropout_draws_from_the_generator() -> None:
    """The same seed gives the same mask, the next call another; without dropout nothing is drawn."""
    whole = draw(16)
    torch.manual_seed(3)
    first, second = dropped(whole, 0.5), dropped(whole, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropped(whole, 0.5), first) and not torch.equal(first, second)
    state = torch.get_rng_state()
    attention(*whole[:3])
    assert torch.equal(torch.get_rng_state(), state)


@layouts
@pytest.mark.parametrize("tokens_k", [31, 12, 50])
def test_cross_attention(layout: str, tokens_k: int) -> None:
    """Keys of other lengths than the queries, causal to the last key; rows without a key have out 0 and lse -inf."""
    cu_seqlens_k = [0, 4, 4, 5, 9, 12] if tokens_k == 12 else [0, 9, 10, 10, 11, tokens_k]
    for batch in ((), (2,)):
        whole = draw(31, batch, tokens_k=tokens_k)
        for options in ({}, {"causal": True}, {"window_size": (2, 2)}):
            found = solve_native(3, whole, layout=layout, cu_seqlens=PACKED, cu_seqlens_k=cu_seqlens_k, **options)
            expected = truth(whole, PACKED, cu_seqlens_k, **options)
            assert torch.equal(found.lse.isinf(), expected.lse.isinf())
            assert_exact(found, expected)


@layouts
def test_cross_attention_of_whole_sequences(layout: str) -> None:
    """Without cu_seqlens every rank holds as many queries as the others, and as many keys."""
    whole = draw(24, tokens_k=36)
    for causal in (False, True):
        assert_exact(solve_native(3, whole, layout=layout, causal=causal), truth(whole, causal=causal))


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, lambda x: torch.tensor(x, dtype=torch.int32)])
def test_kinds_of_cu_seqlens(kind: Any) -> None:
    whole = draw(31, ())
    assert_exact(solve_native(2, whole, cu_seqlens=kind(PACKED), causal=True), truth(whole, PACKED, causal=True))


def test_cu_seqlens_of_cp_and_of_the_call() -> None:
    """Those of the call come first; cp's hold for all calls that say none."""
    whole, other = draw(31, ()), [0, 17, 31]
    cp = ContextParallel(SingleRank(), cu_seqlens=other)
    for options, borders in (({}, other), ({"cu_seqlens": PACKED}, PACKED)):
        out = attention(*whole[:3], cp=cp, **options)
        assert (out - truth(whole, borders).out).abs().max() < 1e-12


@pytest.mark.parametrize("kernel", [None, "reference", "torch_flash"])
def test_kernels(kernel: str | None) -> None:
    """A kernel by its name; the gradient of lse comes right whether or not the kernel has a place for it."""
    whole = draw(24, dtype=torch.float64)
    found = solve_native(2, whole, layout="contiguous", route="ring", kernel=kernel, causal=True)
    assert_exact(found, truth(whole, causal=True))


def test_named_kernel_that_cannot() -> None:
    with pytest.raises(ringattn.UnsupportedError, match=r"torch_flash.*cannot"):
        attention(*draw(8)[:3], cp=ContextParallel(SingleRank(), kernel="torch_flash"), softcap=1.0)


def test_a_kernel_that_one_rank_cannot_use_is_refused_on_all() -> None:
    """The window cuts no row of the first rank, which would wait for the others."""
    whole = draw(24)

    def main(comm: Threads) -> None:
        cp = ContextParallel(comm, layout="contiguous", kernel="torch_flash")
        q, k, v = (x.index_select(-3, rows_of(cp, 24, 3)[comm.rank]) for x in whole[:3])
        with pytest.raises(ValueError, match=r"torch_flash.*a launch needs the window"):
            attention(q, k, v, cp=cp, causal=True, window_size=(10, -1))

    run(3, main, timeout=20)


@pytest.mark.parametrize("dims", [(8, 3), (3, 8), (1, 1)], ids=str)
def test_values_of_another_dimension(dims: tuple[int, int]) -> None:
    whole = draw(24, dim=dims[0], dim_v=dims[1])
    assert_exact(solve_native(2, whole, causal=True), truth(whole, causal=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("route", ["ring", "waves", "gather"])
def test_dtypes(dtype: torch.dtype, route: str) -> None:
    """At most twice as far from float64 as dense PyTorch in the same dtype."""
    whole = draw(48, dtype=dtype)
    expected, fair = (
        truth(whole, causal=True),
        errors(truth(whole, causal=True, dtype=dtype), truth(whole, causal=True)),
    )
    found = solve_native(3, whole, route=route, causal=True)
    assert found.out.dtype == found.dq.dtype == dtype and found.lse.dtype == torch.float32
    for name, error in errors(found, expected).items():
        assert error <= 2 * fair[name], f"{name} is off by {error}, plain {dtype} by {fair[name]}"


@pytest.mark.parametrize("shape", [(0, 6), (2, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("route", ["ring", "waves", "gather"])
def test_nothing_to_attend(shape: tuple[int, int], route: str) -> None:
    """No rows in the batch, or no tokens, are an answer without any, with gradients."""
    batch, tokens = shape
    whole = draw(tokens * 2, (batch,))
    found = solve_native(2, whole, route=route, causal=True)
    assert found.out.shape == whole.q.shape and found.lse.shape == (batch, 4, tokens * 2)
    assert found.dk.shape == whole.k.shape
    for per_sequence in (True, False):
        empty = solve_native(2, draw(0, ()), cu_seqlens=[0, 0, 0], route=route, per_sequence=per_sequence)
        assert empty.out.shape == (0, 4, 8) and empty.lse.shape == (4, 0)


@layouts
def test_ranks_without_a_token(layout: str) -> None:
    whole = draw(3)
    found = solve_native(5, whole, layout=layout, cu_seqlens=[0, 1, 3], causal=True)
    assert_exact(found, truth(whole, [0, 1, 3], causal=True))


def test_one_rank_communicates_nothing() -> None:
    """With cp of one rank, or with none at all, this is plain attention."""
    whole = draw(13)
    for cp in (None, ContextParallel(Mute(0, 1)), ContextParallel(SingleRank(), "striped", "gather")):

        def attend(q: Tensor, k: Tensor, v: Tensor, _: Communicator, cp: Any = cp) -> tuple[Tensor, Tensor]:
            return attention(q, k, v, cp=cp, causal=True, return_lse=True)

        assert_exact(solve(1, attend, whole, [torch.arange(13)]), truth(whole, causal=True))


def test_what_is_returned() -> None:
    """out alone, or with lse, (batch, num_heads, tokens) or (num_heads, tokens)."""
    whole, packed = draw(6), draw(6, ())
    assert isinstance(attention(*whole[:3]), Tensor)
    for x, shape in ((whole, (2, 4, 6)), (packed, (4, 6))):
        out, lse = attention(*x[:3], return_lse=True)
        assert out.shape == x.q.shape and lse.shape == shape


def test_dead_rows_have_no_gradient() -> None:
    """A query that sees no key gets and gives nothing, even if the loss is made of its lse."""
    q, k, v = (x.clone().requires_grad_() for x in draw(6, (), tokens_k=3)[:3])
    out, lse = attention(q, k, v, causal=True, return_lse=True)
    assert torch.equal(lse[:, :3], torch.full((4, 3), -torch.inf)) and not out[:3].any()
    (out.sum() + lse.sum()).backward()
    assert q.grad is not None and not q.grad[:3].any() and q.grad.isfinite().all()


def test_wrong_shapes_of_other_ranks_are_told() -> None:
    """Ranks that disagree on lengths are told so before they send anything."""

    def main(comm: Communicator) -> None:
        attention(*draw(4 + comm.rank)[:3], cp=ContextParallel(comm))

    with pytest.raises(ValueError, match=r"cu_seqlens is \(0, 8, 16\) on rank 0 and \(0, 10, 20\) on rank 1"):
        run(2, main)
