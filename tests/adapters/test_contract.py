"""The behaviours that users of ring-flash-attention rely on, numbered as in section 7.1 of its contract (SEED_API.md).

Everything is called by the names of `ringattn.compat.ring_flash_attn`, but for the two families that are missing there.
Elsewhere: process groups (3) in test_processes.py; llama 3's lengths (18, 19) in test_llama3.py; the Hugging Face
adapter (25 to 29, 31) in compat/test_hf_adapter.py; import paths (30) and what importing needs (33) in
compat/test_names.py. Where the original raises (13, 14) or is silently wrong, ours is right.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import ringattn
from adapters.comms import Mute, Recorded
from adapters.sharded import (
    FAMILIES,
    LLAMA3,
    PACKINGS,
    RING,
    RING_VARLEN,
    STRIPE,
    ZIGZAG,
    ZIGZAG_LLAMA3,
    ZIGZAG_VARLEN,
    Family,
    assert_exact,
    draw,
    dropped,
    errors,
    packed,
    problem,
    solve,
    solve_family,
    truth,
)
from ringattn.compat import ring_flash_attn
from ringattn.llama3 import stream_borders
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator, SingleRank
from ringattn_core.plan.layout import contiguous
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import at_once


def _tail(
    dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), alibi_slopes=None,
    deterministic=False, return_attn_probs=False, group=None,
) -> None: ...  # fmt: skip


# As version 0.1.8 of ring-flash-attention declares the last parameters of every function.
TAIL = {name: parameter.default for name, parameter in inspect.signature(_tail).parameters.items()}
PREPARED = ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "heads_k_stride", "local_k_slice"]
BETWEEN = {
    "ring_flash_attn": [],
    "zigzag_ring_flash_attn": [],
    "stripe_flash_attn": [],
    "ring_flash_attn_varlen": ["cu_seqlens", "max_seqlen"],
    "zigzag_ring_flash_attn_varlen": ["cu_seqlens", "max_seqlen"],
    "llama3_flash_attn_varlen": PREPARED,
    # These two families are missing there.
    "stripe_flash_attn_varlen": ["cu_seqlens", "max_seqlen"],
    "zigzag_llama3_flash_attn_varlen": ["cu_seqlens", "max_seqlen", "heads_k_stride"],
}
TENSORS = {"func": ["q", "k", "v"], "kvpacked_func": ["q", "kv"], "qkvpacked_func": ["qkv"]}

every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


def borders_of(family: Family, cu_seqlens: Sequence[int]) -> Sequence[int] | None:
    return cu_seqlens if family.packed else None


@pytest.mark.parametrize("packing", PACKINGS)
@every_family
def test_1_names_parameters_order_and_defaults(family: Family, packing: str) -> None:
    function, name = family.function(packing), f"{family.prefix}_{packing}"
    parameters = inspect.signature(function).parameters
    required = TENSORS[packing] + BETWEEN[family.prefix]
    assert list(parameters) == [*required, *TAIL]
    assert {name: parameters[name].default for name in TAIL} == TAIL
    assert all(parameters[name].default is inspect.Parameter.empty for name in required)
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert function.__name__ == name
    assert function is getattr(ringattn, name)


def test_1_the_21_names() -> None:
    """1: what is exported beside the functions, and that nothing is missing; `ringattn` has the same functions."""
    others = {
        "llama3_flash_attn_prepare_cu_seqlens": ["cu_seqlens", "causal", "rank", "world_size"],
        "substitute_hf_flash_attn": ["process_group", "heads_k_stride"],
        "update_ring_flash_attn_params": ["cu_seqlens", "process_group"],
    }
    for name, parameters in others.items():
        assert list(inspect.signature(getattr(ring_flash_attn, name)).parameters) == parameters
    functions = {f"{prefix}_{packing}" for prefix in list(BETWEEN)[:6] for packing in PACKINGS}
    assert set(ring_flash_attn.__all__) == functions | others.keys() and len(ring_flash_attn.__all__) == 21
    assert ring_flash_attn.llama3_flash_attn_prepare_cu_seqlens is ringattn.llama3_flash_attn_prepare_cu_seqlens


@every_family
def test_1_every_argument_may_be_positional(family: Family) -> None:
    whole, cu_seqlens = problem(family, 1)
    comm, function = SingleRank(), family.function()
    between = family.between(comm, cu_seqlens, True, 1)
    out, lse, _ = function(*whole[:3], *between, 0.0, 0.3, True, (4, 0), None, True, True, comm)
    expected = truth(whole, borders_of(family, cu_seqlens), causal=True, softmax_scale=0.3, window_size=(4, 0))
    assert (out - expected.out).abs().max() < 1e-12
    assert (lse - expected.lse).abs().max() < 1e-12


@pytest.mark.parametrize("packing", PACKINGS)
@every_family
def test_2_packings(family: Family, packing: str) -> None:
    """2: kv and qkv in one tensor are the same as apart, gradients included."""
    whole, cu_seqlens = problem(family, 2, kv_heads=4)
    found = solve_family(family, 2, whole, cu_seqlens, packing=packing, causal=True)
    assert_exact(found, truth(whole, borders_of(family, cu_seqlens), causal=True))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [2, 3, 4])
@every_family
def test_4_13_layouts(family: Family, size: int, causal: bool) -> None:
    """4: tokens lie as documented; 13: with and without causal, zigzag and stripe too, which the original refuses."""
    whole, cu_seqlens = problem(family, size)
    found = solve_family(family, size, whole, cu_seqlens, causal=causal)
    assert_exact(found, truth(whole, borders_of(family, cu_seqlens), causal=causal))


@pytest.mark.parametrize("softmax_scale", [None, 0.0, 0.7])
@every_family
def test_5_softmax_scale(family: Family, softmax_scale: float | None) -> None:
    """5: None is head_dim ** -0.5; a given value is honoured, 0 too."""
    whole, cu_seqlens = problem(family, 2)
    found = solve_family(family, 2, whole, cu_seqlens, causal=True, softmax_scale=softmax_scale)
    assert_exact(found, truth(whole, borders_of(family, cu_seqlens), causal=True, softmax_scale=softmax_scale))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@every_family
def test_6_7_8_9_10_what_is_returned(family: Family, dtype: torch.dtype) -> None:
    """6, 8: shapes and dtypes of out and lse; 7, 9: three with the last None, or a tensor; 10: dtypes of gradients."""
    whole, cu_seqlens = problem(family, 2, dtype=dtype)
    rows = family.rows(cu_seqlens, 2)

    def main(comm: Communicator) -> None:
        q, k, v = (x.index_select(-3, rows[comm.rank]).requires_grad_() for x in whole[:3])
        between, function = family.between(comm, cu_seqlens, True, 2), family.function()
        returned = function(q, k, v, *between, causal=True, return_attn_probs=True, group=comm)
        assert isinstance(returned, tuple) and len(returned) == 3 and returned[2] is None
        out, lse, _ = returned
        assert out.shape == q.shape and out.dtype == dtype
        assert lse.shape == (*q.shape[:-3], q.shape[-2], q.shape[-3])
        assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        alone = function(q, k, v, *between, causal=True, group=comm)
        assert isinstance(alone, Tensor) and torch.equal(alone, out)
        alone.sum().backward()
        assert [x.grad.dtype for x in (q, k, v) if x.grad is not None] == [dtype] * 3

    run(2, main)


@every_family
def test_8_lse_is_global(family: Family) -> None:
    """8: the natural logarithm over the keys of all ranks."""
    whole, cu_seqlens = problem(family, 2)
    found = solve_family(family, 2, whole, cu_seqlens)
    if family.packed:
        return assert_exact(found, truth(whole, cu_seqlens))
    scores = torch.einsum("bihd,bjhd->bhij", whole.q, whole.k.repeat_interleave(2, dim=2)) * 8**-0.5
    assert (found.lse - scores.exp().sum(dim=-1).log()).abs().max() < 1e-12


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)]
)
@every_family
def test_11_some_inputs_need_a_gradient(family: Family, wanted: tuple[bool, ...]) -> None:
    whole, cu_seqlens = problem(family, 2)
    rows, expected = family.rows(cu_seqlens, 2), truth(whole, borders_of(family, cu_seqlens), causal=True)
    attend = family.attend(cu_seqlens, causal=True)

    def main(comm: Communicator) -> None:
        own = rows[comm.rank]
        leaves = [x.index_select(-3, own).requires_grad_(need) for x, need in zip(whole[:3], wanted, strict=True)]
        out, lse = attend(*leaves, comm)
        torch.autograd.backward((out, lse), (whole.dout.index_select(-3, own), whole.dlse[..., own]))
        for x, grad in zip(leaves, expected[2:], strict=True):
            if x.requires_grad:
                assert x.grad is not None and (x.grad - grad.index_select(-3, own)).abs().max() < 1e-11
            else:
                assert x.grad is None

    run(2, main)


@pytest.mark.parametrize("heads", [(4, 4), (6, 3), (6, 2), (4, 1)], ids=str)
@every_family
def test_12_grouped_heads(family: Family, heads: tuple[int, int]) -> None:
    """12: any number of query heads that the number of kv heads divides."""
    whole, cu_seqlens = problem(family, 2, heads=heads[0], kv_heads=heads[1])
    found = solve_family(family, 2, whole, cu_seqlens, causal=True)
    assert_exact(found, truth(whole, borders_of(family, cu_seqlens), causal=True))


@every_family
def test_14_alibi(family: Family) -> None:
    """14: the original refuses slopes; ours takes them, with positions across ranks."""
    whole, cu_seqlens = problem(family, 2)
    slopes = torch.tensor([0.5, 0.25, 0.125, 1.0])
    found = solve_family(family, 2, whole, cu_seqlens, causal=True, alibi_slopes=slopes)
    assert_exact(found, truth(whole, borders_of(family, cu_seqlens), causal=True, alibi_slopes=slopes))


@pytest.mark.parametrize("family", [RING, ZIGZAG, STRIPE], ids=str)
def test_15_cross_attention(family: Family) -> None:
    """15: queries and keys of different lengths, without causal."""
    whole = draw(24, tokens_k=36)
    rows, rows_k = family.rows([0, 24], 3), family.rows([0, 36], 3)
    found = solve(3, family.attend([0, 24]), whole, rows, rows_k)
    assert_exact(found, truth(whole))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("family", [RING_VARLEN, ZIGZAG_VARLEN, ZIGZAG_LLAMA3], ids=str)
def test_16_lengths_are_local(family: Family, dtype: torch.dtype) -> None:
    """16: cu_seqlens are the global ones divided by the number of ranks, and read from their tensor once."""
    whole, cu_seqlens = problem(family, 2)
    rows, local = family.rows(cu_seqlens, 2), torch.tensor(cu_seqlens, dtype=dtype) // 2
    stride = [2] if family is ZIGZAG_LLAMA3 else []

    def attend(q: Tensor, k: Tensor, v: Tensor, comm: Communicator) -> tuple[Tensor, Tensor]:
        function = family.function()
        out, lse, _ = function(q, k, v, local, 8, *stride, causal=True, return_attn_probs=True, group=comm)
        return out, lse

    assert_exact(solve(2, attend, whole, rows), truth(whole, cu_seqlens, causal=True))


@pytest.mark.parametrize("family", [LLAMA3, ZIGZAG_LLAMA3], ids=str)
def test_17_heads_k_stride(family: Family) -> None:
    """17: what does not divide the kv heads is an AssertionError; every divisor gives the same numbers."""
    whole, cu_seqlens = problem(family, 2, heads=8, kv_heads=4)
    expected = truth(whole, cu_seqlens, causal=True)
    for stride in (1, 2, 4):
        assert_exact(solve_family(family, 2, whole, cu_seqlens, causal=True, stride=stride), expected)
    for stride in (0, 3, 8):
        with pytest.raises(AssertionError, match=f"heads_k_stride must divide the 4 kv heads, got {stride}"):
            family.attend(cu_seqlens, stride=stride)(*whole[:3], Mute(0, 1))


@pytest.mark.parametrize("family", [LLAMA3, ZIGZAG_LLAMA3], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_17_so_many_heads_travel_at_once(family: Family, stride: int) -> None:
    """17: what the argument is for: of the gathered keys, no more than `heads_k_stride` heads are held."""
    whole, cu_seqlens = problem(family, 2, heads=8, kv_heads=4)
    rows, calls = family.rows(cu_seqlens, 2), [list[Any]() for _ in range(2)]

    def main(comm: Communicator) -> None:
        own = (x.index_select(-3, rows[comm.rank]) for x in whole[:3])
        family.attend(cu_seqlens, stride=stride)(*own, Recorded(comm, calls[comm.rank]))

    run(2, main)
    assert [(name, shape[1]) for name, shape, *_ in calls[0]] == [("all_gather", stride)] * (4 // stride)


@pytest.mark.parametrize("window", [(-1, -1), (0, 0), (2, 0), (3, 1), (-1, 2), (9, -1)], ids=str)
@every_family
def test_20_windows_reach_over_ranks(family: Family, window: tuple[int, int]) -> None:
    """20, and beyond: the original is wrong in every family but causal llama 3."""
    whole, cu_seqlens = problem(family, 3)
    found = solve_family(family, 3, whole, cu_seqlens, window_size=window, causal=window[1] == 0)
    assert_exact(found, truth(whole, borders_of(family, cu_seqlens), window_size=window))


@pytest.mark.parametrize("causal", [False, True])
def test_20_llama3_is_one_launch(causal: bool) -> None:
    """20: one kernel call per head group on the gathered keys, so that nothing is merged."""
    cu_seqlens = [0, 5, 5, 19, 24]
    for rank in range(3):
        q, k, _, _, keys = ring_flash_attn.llama3_flash_attn_prepare_cu_seqlens(
            torch.tensor(cu_seqlens), causal, rank, 3
        )
        borders = stream_borders(q, k, keys, rank, 3, 8)
        window = (-1, 0 if causal else -1)
        schedule = plan(contiguous, at_once, borders, borders, rank, 3, window=window, per_sequence=False)
        assert [len(step.launches) for step in schedule.steps] == [1]


@every_family
def test_21_views(family: Family) -> None:
    """21: transposed and sliced inputs, and an expanded gradient of out."""
    whole, cu_seqlens = problem(family, 2, kv_heads=4)
    whole = whole._replace(dout=torch.ones(8, dtype=torch.float64).expand_as(whole.dout), dlse=whole.dlse * 0)
    rows, expected = family.rows(cu_seqlens, 2), truth(whole, borders_of(family, cu_seqlens), causal=True)

    def main(comm: Communicator) -> None:
        own = rows[comm.rank]
        q, k, v = (x.index_select(-3, own) for x in whole[:3])
        swapped = q.transpose(-3, -2).contiguous().requires_grad_()
        both = torch.cat([k, v], dim=-1).requires_grad_()
        views = swapped.transpose(-3, -2), both[..., :8], both[..., 8:]
        assert not any(x.is_contiguous() for x in views)
        out, _ = family.attend(cu_seqlens, causal=True)(*views, comm)
        out.backward(whole.dout.index_select(-3, own)[..., :1].expand_as(out))
        assert swapped.grad is not None and both.grad is not None
        for found, grad in zip((swapped.grad.transpose(-3, -2), *both.grad.split(8, -1)), expected[2:], strict=True):
            assert (found - grad.index_select(-3, own)).abs().max() < 1e-11

    run(2, main)


@every_family
def test_22_deterministic(family: Family) -> None:
    """22: gradients are bitwise the same from run to run."""
    whole, cu_seqlens = problem(family, 3, dtype=torch.bfloat16)
    first, second = (
        solve_family(family, 3, whole, cu_seqlens, causal=True, deterministic=True, stride=2) for _ in range(2)
    )
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@every_family
def test_23_inference_and_checkpointing(family: Family) -> None:
    """23: no_grad and inference_mode save nothing; both kinds of checkpointing give the same gradients."""
    whole, cu_seqlens = problem(family, 2)
    rows, expected = family.rows(cu_seqlens, 2), truth(whole, borders_of(family, cu_seqlens), causal=True)
    attend = family.attend(cu_seqlens, causal=True)

    def main(comm: Communicator) -> None:
        own = rows[comm.rank]

        def inputs() -> list[Tensor]:
            return [x.index_select(-3, own).requires_grad_() for x in whole[:3]]

        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                out, _ = attend(*inputs(), comm)
            assert not out.requires_grad and (out - expected.out.index_select(-3, own)).abs().max() < 1e-12
        for reentrant in (False, True):
            leaves = inputs()
            out, lse = checkpoint(attend, *leaves, comm, use_reentrant=reentrant)
            torch.autograd.backward((out, lse), (whole.dout.index_select(-3, own), whole.dlse[..., own]))
            for x, grad in zip(leaves, expected[2:], strict=True):
                assert x.grad is not None and (x.grad - grad.index_select(-3, own)).abs().max() < 1e-11

    run(2, main)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_20_causal_wins_over_a_right_side(family: Family) -> None:
    """20: as in FlashAttention, where `attention` says that the two contradict each other."""
    whole, cu_seqlens = problem(family, 3)
    expected = truth(whole, borders_of(family, cu_seqlens), window_size=(4, 0))
    for right in (3, -1):
        assert_exact(solve_family(family, 3, whole, cu_seqlens, window_size=(4, right), causal=True), expected)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.packed], ids=str)
def test_alibi_of_every_sequence(family: Family) -> None:
    """As flash_attn_varlen_func takes it: a row of slopes for each sequence that the rank was told of."""
    whole, cu_seqlens = problem(family, 3)
    if family.layout == "stream":
        whole, cu_seqlens = draw(24, ()), [0, 5, 19, 24]
    slopes = torch.rand(len(cu_seqlens) - 1, 4, dtype=torch.float64)

    def attend(q: Tensor, k: Tensor, v: Tensor, comm: Communicator) -> tuple[Tensor, Tensor]:
        # Of a stream a rank is told of the sequences that its slice has tokens of: 0 and 1, 1, 1 and 2.
        told = [slice(2), slice(1, 2), slice(1, 3)][comm.rank] if family.layout == "stream" else slice(None)
        return family.attend(cu_seqlens, causal=True, alibi_slopes=slopes[told])(q, k, v, comm)

    found = solve(3, attend, whole, family.rows(cu_seqlens, 3))
    by_token = slopes.repeat_interleave(torch.tensor(cu_seqlens).diff(), dim=0)
    assert_exact(found, truth(whole, borders_of(family, cu_seqlens), causal=True, alibi_slopes=by_token))


@pytest.mark.parametrize("window", [(-1, -1), (2, 0)], ids=str)
@every_family
def test_24_the_same_calls_on_every_rank(family: Family, window: tuple[int, int]) -> None:
    """24: the order and the shapes of what is communicated do not depend on the rank, also where lengths do."""
    whole, cu_seqlens = problem(family, 4)
    rows, calls = family.rows(cu_seqlens, 4), [list[Any]() for _ in range(4)]

    def attend(q: Tensor, k: Tensor, v: Tensor, comm: Communicator) -> tuple[Tensor, Tensor]:
        recorded = Recorded(comm, calls[comm.rank])
        return family.attend(cu_seqlens, window_size=window)(q, k, v, recorded)

    solve(4, attend, whole, rows)
    assert calls[0] and all(found == calls[0] for found in calls)


@every_family
def test_24_no_host_sync(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """24: once its lengths were read, a call takes no number out of a tensor."""
    whole, cu_seqlens = problem(family, 1)
    comm, leaves = SingleRank(), [x.clone().requires_grad_() for x in whole[:3]]
    between, function = family.between(comm, cu_seqlens, True, 1), family.function()

    def call() -> None:
        function(*leaves, *between, causal=True, group=comm).sum().backward()

    def sync(*_: Any) -> None:
        raise AssertionError("a number was taken out of a tensor")

    # On a CPU, where nothing has to be waited for, a tile's norms are looked at; on a GPU they are not.
    monkeypatch.setattr("ringattn_core.kernels.torch_flash_cpu.finite", lambda *_: True)
    call()
    for name in ("item", "tolist", "__int__", "__bool__", "__index__", "__float__"):
        monkeypatch.setattr(Tensor, name, sync)
    call()


@pytest.mark.parametrize(
    ("packing", "backend"), [("func", "eager"), ("kvpacked_func", "aot_eager"), ("qkvpacked_func", "eager")]
)
@torch._dynamo.config.patch(capture_scalar_outputs=True)  # type: ignore[untyped-decorator]
def test_32_torch_compile(packing: str, backend: str) -> None:
    """32: compiled with capture_scalar_outputs every function runs, and gives the same."""
    calls = []
    for family in FAMILIES:
        whole, cu_seqlens = problem(family, 1, kv_heads=4)
        between = family.between(SingleRank(), cu_seqlens, True, 1)
        calls.append((family.function(packing), between, [*packed(packing, *whole[:3])]))

    def total(scale: Tensor) -> Tensor:
        outs = [function(*tensors, *between, causal=True, group=SingleRank()) for function, between, tensors in calls]
        return scale * sum(out.square().sum() for out in outs)

    for _, _, tensors in calls:
        for x in tensors:
            x.requires_grad_()
    leaves = [x for _, _, tensors in calls for x in tensors]
    scale = torch.tensor(2.0, dtype=torch.float64)
    torch.compiler.reset()
    expected, found = total(scale), torch.compile(total, backend=backend)(scale)
    assert found == expected
    for x, y in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert torch.equal(x, y)


@every_family
def test_34_one_rank_is_plain_attention(family: Family) -> None:
    """34: forward and backward, and nothing is communicated."""
    whole, cu_seqlens = problem(family, 1)

    def attend(q: Tensor, k: Tensor, v: Tensor, comm: Communicator) -> tuple[Tensor, Tensor]:
        return family.attend(cu_seqlens, causal=True)(q, k, v, Mute(0, 1))

    found = solve(1, attend, whole, family.rows(cu_seqlens, 1))
    assert_exact(found, truth(whole, borders_of(family, cu_seqlens), causal=True))


@every_family
def test_35_far_apart_scores(family: Family) -> None:
    """35: blocks whose log-sum-exps are more than 1e4 apart are merged without overflow."""
    whole, cu_seqlens = problem(family, 2)
    growing = torch.linspace(-600, 600, whole.k.shape[-3], dtype=torch.float64)[:, None, None]
    whole = whole._replace(k=whole.k + growing * whole.q.mean(dim=(-3, -2), keepdim=True) * 100)
    expected = truth(whole, borders_of(family, cu_seqlens))
    assert expected.lse.max() - expected.lse.min() > 1e4
    found = solve_family(family, 2, whole, cu_seqlens)
    assert_exact(found, expected, 1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_family
def test_36_low_precision(family: Family, dtype: torch.dtype) -> None:
    """36: fp16 and bf16, at most twice as far from float64 as dense PyTorch in that dtype; dq too."""
    whole, cu_seqlens = problem(family, 2, dtype=dtype)
    borders = borders_of(family, cu_seqlens)
    expected, plain = truth(whole, borders, causal=True), truth(whole, borders, causal=True, dtype=dtype)
    fair = errors(plain, expected)
    for name, error in errors(solve_family(family, 2, whole, cu_seqlens, causal=True), expected).items():
        assert error <= 2 * fair[name], f"{name} is off by {error}, plain {dtype} by {fair[name]}"


@pytest.mark.parametrize("dim", [1, 5, 300])
@every_family
def test_37_any_head_dim(family: Family, dim: int) -> None:
    """37: head dimensions that flash-attn refuses are right."""
    whole, cu_seqlens = problem(family, 2, dim=dim)
    found = solve_family(family, 2, whole, cu_seqlens, causal=True)
    assert_exact(found, truth(whole, borders_of(family, cu_seqlens), causal=True))


@every_family
def test_dropout(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original's backward pass has another mask than its forward pass; ours has one, whatever the family."""
    # Threads share one generator; on processes the seed is drawn for real, in test_processes.py.
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(1234))
    whole, cu_seqlens = problem(family, 2)
    found = solve_family(family, 2, whole, cu_seqlens, causal=True, dropout_p=0.3, stride=2)
    assert_exact(found, truth(whole, borders_of(family, cu_seqlens), causal=True, kept=dropped(whole, 0.3)))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("family", [ZIGZAG, ZIGZAG_VARLEN], ids=str)
def test_odd_local_lengths(family: Family, size: int) -> None:
    """The original's zigzag is silently wrong where a rank holds an odd number of tokens; ours goes by `cp.shard`."""
    cu_seqlens = [0, 3 * size, 4 * size, 9 * size] if family.packed else [0, 7 * size]
    whole = draw(cu_seqlens[-1], () if family.packed else (2,))
    cps = [ringattn.ContextParallel(Mute(rank, size), "zigzag", cu_seqlens=cu_seqlens) for rank in range(size)]
    rows = [cp.shard(torch.arange(cu_seqlens[-1]), dim=0) for cp in cps]
    found = solve(size, family.attend(cu_seqlens, causal=True), whole, rows)
    assert_exact(found, truth(whole, borders_of(family, cu_seqlens), causal=True))
