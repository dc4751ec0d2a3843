"""Bad input gets a message: what was given, what was expected, what to do; and nothing has been communicated."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ringattn
from adapters.comms import Mute
from adapters.sharded import FAMILIES, Family, problem
from ringattn import attention
from ringattn.context_parallel import ContextParallel
from ringattn_comms.communicator import SingleRank

B, T, H, HK, D = 2, 8, 4, 2, 8


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def call(error: type[Exception], message: str, **given: Any) -> None:
    """One rank of two makes a good call, but for what is given."""
    cp = given.pop("cp", None) or ContextParallel(Mute(0, 2), **given.pop("parallel", {}))
    good = {"q": tensor(B, T, H, D), "k": tensor(B, T, HK, D), "v": tensor(B, T, HK, D)}
    with pytest.raises(error, match=message):
        attention(**(good | given), cp=cp)


def test_a_good_call_communicates() -> None:
    """Without this the other tests would prove nothing."""
    call(AssertionError, "rank 0 called send_recv")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"q": tensor(T, H, D)},
            r"q, k and v must all be \(batch, tokens, heads, head_dim\), or all .*got q \(8, 4, 8\), k",
        ),
        ({"q": tensor(B, T, 3, H, D)}, r"or all \(tokens, heads, head_dim\); got q \(2, 8, 3, 4, 8\)"),
        ({"v": tensor(B, T, 1, D)}, r"k and v must have the same batch, tokens and heads.*got .*v \(2, 8, 1, 8\)"),
        ({"v": tensor(B, 9, HK, D)}, r"k and v must have the same batch, tokens and heads.*v \(2, 9, 2, 8\)"),
        ({"q": tensor(3, T, H, D)}, r"q the same batch; got q \(3, 8, 4, 8\)"),
        ({"q": tensor(B, T, H, 16)}, "q and k must have the same head_dim, got 16 and 8"),
        (
            {"q": tensor(B, T, 5, D)},
            "num_kv_heads must divide num_heads: q has 5 heads and k has 2.*group of query heads",
        ),
        ({"k": tensor(B, T, 0, D), "v": tensor(B, T, 0, D)}, "q has 4 heads and k has 0"),
        ({"q": tensor(B, T, H, 0), "k": tensor(B, T, HK, 0)}, r"head_dim must be 1 or more, got q \(2, 8, 4, 0\)"),
    ],
    ids=str,
)
def test_shapes(given: dict[str, Tensor], message: str) -> None:
    call(ValueError, message, **given)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_dtypes(name: str) -> None:
    heads = H if name == "q" else HK
    expected = r"must have one dtype out of float16, bfloat16, float32 and float64; got .*{} {}.* Cast them with .to\("
    for dtype in (torch.float16, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn):
        x = torch.empty(B, T, heads, D, dtype=dtype)
        call(TypeError, expected.format(name, dtype), **{name: x})
    whole = [torch.empty(B, T, heads, D, dtype=torch.int64) for heads in (H, HK, HK)]
    call(TypeError, expected.format("q", "torch.int64"), **dict(zip("qkv", whole, strict=True)))
    with torch.autocast("cpu"):
        call(TypeError, expected.format("q", "torch.int64"), **dict(zip("qkv", whole, strict=True)))


def test_devices() -> None:
    call(
        ValueError, r"must be on one device; got q cpu, k meta, v cpu. Move", k=torch.empty(B, T, HK, D, device="meta")
    )


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"dropout_p": 1.0}, ValueError, r"dropout_p must be in \[0, 1\), got 1.0: it is the share"),
        ({"dropout_p": -0.1}, ValueError, r"dropout_p must be in \[0, 1\), got -0.1"),
        ({"dropout_p": float("nan")}, ValueError, "got nan"),
        ({"softcap": -1.0}, ValueError, "softcap must be positive, or 0 for none, got -1.0"),
        ({"softcap": float("nan")}, ValueError, "got nan"),
        ({"softcap": None}, ValueError, "softcap must be a finite number, got None"),
        ({"softmax_scale": float("nan")}, ValueError, "softmax_scale must be a finite number, got nan"),
        ({"softcap": [1.0]}, ValueError, r"softcap must be a finite number, got \[1.0\]"),
        ({"softmax_scale": [1.0]}, ValueError, r"softmax_scale must be a finite number, got \[1.0\]"),
        ({"dropout_p": "0.1"}, ValueError, "dropout_p must be a finite number, got '0.1'"),
        ({"q": torch.tensor(1.0)}, ValueError, r"q, k and v must all be \(batch, tokens.*got q \(\), k"),
        ({"k": None}, TypeError, "q, k and v must be tensors, got Tensor, NoneType, Tensor"),
        (
            {"causal": True, "window_size": (4, 2)},
            ValueError,
            r"causal=True and window_size=\(4, 2\) contradict.*Say window_size=\(4, 0\), or causal=False",
        ),
        ({"window_size": (4,)}, TypeError, r"window_size must be \(left, right\), two whole numbers.*got \(4,\)"),
        ({"window_size": (4, 0, 0)}, TypeError, r"got \(4, 0, 0\)"),
        ({"window_size": (1.5, 0)}, TypeError, r"got \(1.5, 0\)"),
        ({"window_size": 4}, TypeError, "got 4"),
        ({"window_size": None}, TypeError, "-1 for an open side; got None"),
        ({"sinks": tensor(HK)}, ValueError, r"one logit for each of the 4 query heads, got \(2,\)"),
        ({"sinks": tensor(H, 1)}, ValueError, r"got \(4, 1\)"),
        (
            {"sinks": torch.zeros(H, dtype=torch.int64)},
            TypeError,
            "sinks must be floating point.*got torch.int64 on cpu",
        ),
        ({"sinks": torch.zeros(H, device="meta")}, TypeError, "on cpu, as q is; got torch.float32 on meta"),
        (
            {"alibi_slopes": tensor(HK)},
            ValueError,
            r"\(num_heads,\) = \(4,\), \(batch, num_heads\) = \(2, 4\) or .*, got \(2,\)",
        ),
        ({"alibi_slopes": tensor(3, H)}, ValueError, r"\(batch, num_heads\) = \(2, 4\) or .*, got \(3, 4\)"),
        ({"alibi_slopes": torch.zeros(H, dtype=torch.int32)}, TypeError, "alibi_slopes must be floating point"),
        ({"alibi_slopes": torch.zeros(H, requires_grad=True)}, ValueError, r"get no gradient.*alibi_slopes.detach\(\)"),
    ],
    ids=str,
)
def test_options(given: dict[str, Any], error: type[Exception], message: str) -> None:
    call(error, message, **given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"cu_seqlens": [1, 16]}, ValueError, r"cu_seqlens must start at 0 .*got \[1, 16\].*\[0, 3, 8\]"),
        ({"cu_seqlens": [0, 9, 4, 16]}, ValueError, "cu_seqlens must never decrease, but entry 2 is 4 after 9"),
        (
            {"cu_seqlens": [0, 8, 14]},
            ValueError,
            r"q has 8 tokens, but rank 0 of 2 holds 7 of the 14 in all, .* the end of cu_seqlens, .*global.*cp.shard",
        ),
        ({"cu_seqlens": [0, 4, 8]}, ValueError, "q has 8 tokens, but rank 0 of 2 holds 4 of the 8 in all"),
        ({"cu_seqlens": torch.zeros(3)}, TypeError, "cu_seqlens must be a one-dimensional tensor of whole numbers"),
        (
            {"cu_seqlens": [0, 16], "cu_seqlens_k": [0, 9]},
            ValueError,
            "k has 8 tokens, but rank 0 of 2 holds 5 of the 9 in all, .* cu_seqlens_k or",
        ),
        ({"cu_seqlens": [0, 16], "cu_seqlens_k": [0, 9, 8]}, ValueError, "cu_seqlens_k must never decrease"),
        (
            {"cu_seqlens": [0, 16], "cu_seqlens_k": [0, 8, 16]},
            ValueError,
            "cu_seqlens are the borders of 1 sequences and cu_seqlens_k of 2",
        ),
        ({"cu_seqlens_k": [0, 16]}, ValueError, "cu_seqlens_k was given without cu_seqlens: say"),
        (
            {"cu_seqlens": [0, 16], "k": tensor(B, 6, HK, D), "v": tensor(B, 6, HK, D)},
            ValueError,
            "k has 6 tokens, but rank 0 of 2 holds 8 of the 16 in all, .*the end of cu_seqlens_k or cu_seqlens",
        ),
    ],
    ids=str,
)
def test_lengths(given: dict[str, Any], error: type[Exception], message: str) -> None:
    call(error, message, **given)


def test_layouts_and_routes() -> None:
    """Names that do not exist, with the nearest one."""
    for given, message in (
        ({"layout": "zigzig"}, "There is no layout 'zigzig'; there are 'contiguous', .* Did you mean 'zigzag'"),
        ({"layout": "stripe"}, "Did you mean 'striped'"),
        ({"route": "rings"}, "There is no route 'rings'; there are 'auto', 'ring', .* Did you mean 'ring'"),
        ({"route": "wave"}, "Did you mean 'waves'"),
        ({"route": "waves(0)"}, r"waves\(count\) takes a count of 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ContextParallel(SingleRank(), **given)
    for name in ("layout", "route"):
        with pytest.raises(TypeError, match=f"{name} must be a name or a function, got 3"):
            ContextParallel(SingleRank(), **{name: 3})
    call(ValueError, r"double_ring\(3\) needs a cp_size that 3 divides, got 2", parallel={"route": "double_ring(3)"})


def test_kernels() -> None:
    with pytest.raises(ValueError, match=r"There is no kernel 'referense'.*Did you mean 'reference'"):
        ContextParallel(SingleRank(), kernel="referense")


def test_head_groups() -> None:
    """They divide the kv heads, for every message has the same size."""
    for groups in (0, "2"):
        with pytest.raises(ValueError, match=f"head_groups must be a whole number, 1 or more, got {groups!r}"):
            ContextParallel(SingleRank(), head_groups=groups)
    for groups in (3, 4):
        message = f"head_groups must divide num_kv_heads, got {groups} groups of 2 kv heads"
        call(ValueError, message, parallel={"head_groups": groups})


def test_cp() -> None:
    """A group alone is not what `attention` takes."""
    call(TypeError, r"cp must be a ContextParallel, got Mute: say ContextParallel\(group\)", cp=Mute(0, 2))


def test_a_layout_in_the_place_of_the_group() -> None:
    with pytest.raises(TypeError, match=r"A group must be a ProcessGroup, .*; got 'zigzag'\. Layouts and routes go by"):
        ContextParallel("zigzag").shard(torch.zeros(1, 8))


def test_no_process_group() -> None:
    """None is the default group, and there is none here; other groups are in test_processes.py."""
    message = "There is no default process group: call torch.distributed.init_process_group first"
    with pytest.raises(ValueError, match=message):
        ringattn.ring_flash_attn_func(tensor(B, T, H, D), tensor(B, T, HK, D), tensor(B, T, HK, D))
    with pytest.raises(ValueError, match=message):
        ContextParallel().shard(torch.zeros(1, 8))


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_kvpacked_tensors(family: Family) -> None:
    rows, front = ("tokens", (T,)) if family.packed else ("batch, tokens", (B, T))
    between = family.between(Mute(0, 2), [0, 4, 16], False, 1)
    function = getattr(ringattn, f"{family.prefix}_kvpacked_func")
    with pytest.raises(AssertionError, match="rank 0 called"):
        function(tensor(*front, H, D), tensor(*front, 2, HK, D), *between, group=Mute(0, 2))
    for shape in ((*front, 3, HK, D), (*front, HK * D), (2, *front, HK, D, 1, 1)):
        message = f"kv must be ({rows}, 2, heads, head_dim), got {shape}."
        with pytest.raises(ValueError, match=re.escape(message)):
            function(tensor(*front, H, D), tensor(*shape), *between, group=Mute(0, 2))


def test_qkvpacked_tensors() -> None:
    with pytest.raises(ValueError, match=r"qkv must be \(batch, tokens, 3, heads, head_dim\), got \(2, 8, 2, 4, 8\)"):
        ringattn.ring_flash_attn_qkvpacked_func(tensor(B, T, 2, H, D), group=Mute(0, 2))
    with pytest.raises(ValueError, match=r"qkv must be \(tokens, 3, heads, head_dim\), got \(8, 4, 8\)"):
        ringattn.stripe_flash_attn_varlen_qkvpacked_func(tensor(T, H, D), torch.tensor([0, T]), T, group=Mute(0, 2))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.packed], ids=str)
def test_packed_functions(family: Family) -> None:
    """Tensors and lengths of functions for packed sequences, before these are made global."""
    function, comm = getattr(ringattn, f"{family.prefix}_func"), Mute(0, 2)
    between = family.between(comm, [0, 4, 16], False, 1)
    good = tensor(T, H, D), tensor(T, HK, D), tensor(T, HK, D)
    with pytest.raises(AssertionError, match="rank 0 called"):
        function(*good, *between, group=comm)
    for bad, message in (
        ((tensor(H, D), *good[1:]), r"got q \(4, 8\)"),
        ((good[0], tensor(T, 3, D), tensor(T, 3, D)), "num_kv_heads must divide num_heads"),
        ((good[0], good[1], tensor(7, HK, D)), "k and v must have the same"),
    ):
        with pytest.raises(ValueError, match=message):
            function(*bad, *between, group=comm)
    shorter = [x[:7] for x in good]
    expected = (
        "do not describe" if family.layout == "stream" else "cu_seqlens end at 8, but q has 7 tokens and k 7.*2 ranks"
    )
    with pytest.raises(ValueError, match=expected):
        function(*shorter, *between, group=comm)
    with pytest.raises(ValueError, match=r"k has 7 tokens|and k 7"):
        function(good[0], *shorter[1:], *between, group=comm)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_families_check_as_attention_does(family: Family) -> None:
    whole, cu_seqlens = problem(family, 2)
    own = [x[..., : x.shape[-3] // 2, :, :] for x in whole[:3]]
    between, function = family.between(Mute(0, 2), cu_seqlens, False, 1), getattr(ringattn, f"{family.prefix}_func")
    for given, message in (
        ({"dropout_p": 1.5}, r"dropout_p must be in \[0, 1\), got 1.5"),
        ({"causal": True, "window_size": (1,)}, "window_size must be"),
        ({"alibi_slopes": torch.zeros(7)}, "alibi_slopes must be"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            function(*own, *between, group=Mute(0, 2), **given)


@pytest.mark.parametrize("way", ["shard", "unshard"])
def test_three_dimensions_are_two_things(way: str) -> None:
    """(batch, tokens, hidden) and (tokens, heads, head_dim): heads were divided in silence."""
    cp = ContextParallel(SingleRank())
    with pytest.raises(ValueError, match=r"shape \(8, 4, 2\) may be \(batch, .* say dim=1, or \(tokens, .* say dim=0"):
        getattr(cp, way)(tensor(1, 8), tensor(8, 4, 2))
    assert getattr(cp, way)(tensor(8, 4, 2), dim=0).shape == (8, 4, 2)
    lengths = cp.with_cu_seqlens([0, 3, 4])
    assert getattr(lengths, way)(tensor(8, 4, 2)).shape == (8, 4, 2), "tokens are counted"
    with pytest.raises(ValueError, match=r"cu_seqlens ends at 4, but|Rank 0 holds 4 of 4 tokens, but"):
        getattr(lengths, way)(tensor(4, 2, 8))


ARRAY = np.zeros((1, 8, 4, 8), dtype=np.float32)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda cp: attention(ARRAY, ARRAY, ARRAY, cp=cp), "q, k and v must be tensors, got ndarray, ndarray, ndarray"),
        (lambda cp: attention(*[tensor(1, 8, 4, 8)] * 3, cp=cp, sinks=ARRAY), "sinks must be a tensor, got ndarray"),
        (lambda cp: attention(*[tensor(1, 8, 4, 8)] * 3, alibi_slopes=ARRAY), "alibi_slopes must be a tensor, got"),
        (lambda cp: ringattn.ring_flash_attn_func(ARRAY, ARRAY, ARRAY), "q, k and v must be tensors, got ndarray, nd"),
        (lambda cp: ringattn.ring_flash_attn_kvpacked_func(tensor(1, 8, 4, 8), ARRAY), "kv must be a tensor, got nda"),
        (lambda cp: ringattn.ring_flash_attn_qkvpacked_func(ARRAY), "qkv must be a tensor, got ndarray"),
        (lambda cp: cp.shard(ARRAY), r"Tensors go in one by one, as in cp.shard\(q, k, v\), got ndarray"),
        (lambda cp: cp.unshard(ARRAY), "got ndarray"),
        (lambda cp: cp.shift_labels(ARRAY), "got ndarray"),
    ],
)
def test_numpy_arrays(ask: Callable[[ContextParallel], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message + ".*torch.from_numpy makes a tensor of a NumPy array"):
        ask(ContextParallel(SingleRank()))


def test_zero_rows_are_no_mistake() -> None:
    """A batch that is empty on all ranks, such as the last of an evaluation, has an empty result."""
    cp = ContextParallel(Mute(0, 2))
    for shape in ((0, 8, 4, 8), (1, 0, 4, 8), (0, 4, 8)):
        q = tensor(*shape).requires_grad_()
        out = attention(q, q, q, cp=cp, causal=True)
        assert out.shape == shape
        out.sum().backward()
        assert q.grad is not None and q.grad.shape == shape
    assert cp.shard(tensor(0, 8)).shape == (0, 4) and cp.position_ids(0).shape == (1, 0)
    assert cp.shift_labels(tensor(0, 8)).shape == (0, 8)
