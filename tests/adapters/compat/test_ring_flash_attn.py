"""The names of ring-flash-attention: signatures, raw passes, and the ways in which other projects call them."""

from __future__ import annotations

import inspect
import multiprocessing
import subprocess
import sys
from itertools import pairwise, product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import processes
import ringattn
from adapters.hf import compare
from adapters.hf.models import build
from ringattn.compat import ring_flash_attn as rfa
from ringattn.compat.ring_flash_attn import (
    llama3_flash_attn_varlen,
    stripe_flash_attn,
    utils,
    zigzag_ring_flash_attn_varlen,
)
from ringattn.compat.ring_flash_attn import ring_flash_attn as ring
from ringattn.compat.ring_flash_attn.adapters import hf_adapter

multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "adapters.hf.models", "ringattn.hf"])

GLOBAL = torch.tensor([0, 8, 24, 40], dtype=torch.int32)


def run(function: Any, size: int = 2) -> None:
    for found in processes.run(size, function, timeout=120):
        wrong = {name: error for name, error in found.items() if error > 1e-5}
        assert found and not wrong


def test_names_and_signatures() -> None:
    assert len(rfa.__all__) == 21
    for name in rfa.__all__:
        if name.endswith("_func"):
            assert getattr(rfa, name) is getattr(ringattn, name)
    tail = "dropout_p=0.0, causal=True, window_size=(-1, -1), alibi_slopes=None, deterministic=False)"
    for function, front in (
        (ring.ring_flash_attn_forward, "process_group, q, k, v, softmax_scale"),
        (ring.ring_flash_attn_backward, "process_group, dout, q, k, v, out, softmax_lse, softmax_scale"),
        (
            zigzag_ring_flash_attn_varlen.zigzag_ring_flash_attn_varlen_forward,
            "process_group, q, k, v, cu_seqlens, max_seqlen, half_index0, half_index1, softmax_scale",
        ),
        (
            llama3_flash_attn_varlen.llama3_flash_attn_varlen_forward,
            "process_group, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, heads_k_stride, "
            "local_k_slice, softmax_scale",
        ),
    ):
        assert str(inspect.signature(function)) == f"({front}, {tail}"
    assert list(inspect.signature(rfa.substitute_hf_flash_attn).parameters) == ["process_group", "heads_k_stride"]
    assert list(inspect.signature(rfa.update_ring_flash_attn_params).parameters) == ["cu_seqlens", "process_group"]


def test_install() -> None:
    """In a process of its own: the alias and its submodules are ours, transformers is not imported, twice is fine."""
    program = """
import sys
from ringattn.compat import install
assert install() and install()
import ring_flash_attn, ring_flash_attn.adapters.hf_adapter as adapter, ring_flash_attn.triton_utils
from ring_flash_attn.zigzag_ring_flash_attn import zigzag_ring_flash_attn_func
from ringattn.compat.ring_flash_attn.adapters import hf_adapter
import ringattn
assert zigzag_ring_flash_attn_func is ringattn.zigzag_ring_flash_attn_func and adapter is hf_adapter
assert not {"transformers", "flash_attn", "triton"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    blocked = "import sys, types; sys.modules['ring_flash_attn'] = types.ModuleType('ring_flash_attn')\n"
    ask = "from ringattn.compat import install; assert not install(); assert install(force=True)"
    subprocess.run([sys.executable, "-c", blocked + ask], check=True)


def test_helpers() -> None:
    def example(a: int, b: int = 2, softcap: float = 9.0) -> None: ...

    assert utils.get_default_args(example) == {"a": None, "b": 2, "softcap": 0.0}
    operator = torch.library.custom_op(
        "ringattn_tests::example",
        lambda x, scale=3.0: x.clone(),
        mutates_args=(),
        schema="(Tensor x, float scale=3.0) -> Tensor",
    )
    assert utils.get_default_args(operator) == {"x": None, "scale": 3.0}
    cu_seqlens = torch.tensor([0, 4, 10])
    packed = torch.randn(10, 2, 1)
    padded = utils.unflatten_varlen_lse(packed, cu_seqlens, 6)
    assert padded.shape == (2, 2, 6)
    torch.testing.assert_close(utils.flatten_varlen_lse(padded, cu_seqlens), packed[..., 0].T)
    half = zigzag_ring_flash_attn_varlen.get_half_index
    assert half(torch.tensor([0, 6]), front=True) == slice(0, 3) and half(torch.tensor([0, 6]), front=False) == slice(
        3, 6
    )
    assert half(cu_seqlens, front=True).nonzero().flatten().tolist() == [0, 1, 4, 5, 6]
    assert half(cu_seqlens, front=False).nonzero().flatten().tolist() == [2, 3, 7, 8, 9]


def test_update_out_and_lse() -> None:
    scores, values = torch.randn(2, 3, 5, 8, dtype=torch.float32), torch.randn(2, 8, 3, 4)
    blocks = [(slice(0, 3)), slice(3, 8)]

    def block(part: slice) -> tuple[Tensor, Tensor]:
        weights = scores[..., part].softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, values[:, part]), scores[..., part].logsumexp(-1)

    out, lse = None, None
    for part in blocks:
        out, lse = utils.update_out_and_lse(out, lse, *block(part))
    expected_out, expected_lse = block(slice(0, 8))
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(lse.squeeze(-1).transpose(1, 2), expected_lse)
    with pytest.raises(RuntimeError, match="should not pass slice_"):
        utils.update_out_and_lse(None, None, *block(slice(0, 8)), slice_=(slice(None), slice(0, 2)))
    far = utils.update_out_and_lse(out, lse, *block(slice(0, 8)), slice_=(slice(None), slice(0, 5)))
    torch.testing.assert_close(far[1], lse)


def test_raw_passes() -> None:
    run(raw_passes)


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


def test_communication() -> None:
    run(communication, 3)


def communication() -> dict[str, float]:
    """A ring and an all-gather, as prime-rl and others build theirs."""
    rank, comm = dist.get_rank(), utils.RingComm(None)
    with pytest.raises(RuntimeError, match="before commit"):
        comm.wait()
    k, v = comm.send_recv_kv(torch.full((2,), float(rank)), torch.full((3,), rank + 10.0))
    with pytest.raises(RuntimeError, match="twice"):
        comm.commit()
    comm.wait()
    gathered, gather = torch.empty(6, 2), utils.AllGatherComm()
    gather.all_gather(gathered, torch.full((2, 2), float(rank)))
    gather.wait()
    before = float((rank - 1) % 3)
    expected = torch.tensor([0.0, 0, 1, 1, 2, 2])[:, None].expand(6, 2)
    return {
        "k": (k - before).abs().max().item(),
        "v": (v - before - 10).abs().max().item(),
        "gathered": (gathered - expected).abs().max().item(),
    }


def test_transformers() -> None:
    run(through_transformers)


def through_transformers() -> dict[str, float]:
    """OpenRLHF's way (and slime's): substitute once, update before each batch, contiguous shards, gather afterwards."""
    rank, size = dist.get_rank(), dist.get_world_size()
    found, group = {}, dist.group.WORLD
    for name in ("mistral", "gemma2", "gpt_oss"):
        for _ in range(2):  # twice is fine
            rfa.substitute_hf_flash_attn(group, 1)
        found |= {f"{name} {key}": error for key, error in one_model(name, rank, size).items()}
    # axolotl's way: its own function in the place of ours, in a list, before it substitutes.
    ours, calls = hf_adapter.create_ring_flash_attention_forward, []

    def create(process_group: Any, heads_k_stride: int) -> list[Any]:
        (forward,) = ours(process_group, heads_k_stride)

        def counted(*args: Any, **kwargs: Any) -> Tensor:
            calls.append(None)
            return forward(*args, **kwargs)

        return [counted]

    hf_adapter.create_ring_flash_attention_forward = create
    hf_adapter.substitute_hf_flash_attn(process_group=group, heads_k_stride=2)
    found |= {f"axolotl {key}": error for key, error in one_model("llama", rank, size).items()}
    assert len(calls) == 2
    # prime-rl's way: it reads, and writes, the parameters itself.
    assert set(hf_adapter.DATA_PARAMS) == {
        "cu_seqlens_q",
        "cu_seqlens_k",
        "max_seqlen_q",
        "max_seqlen_k",
        "local_k_slice",
    }
    hf_adapter.DATA_PARAMS.clear()
    with pytest.raises(ValueError, match="DATA_PARAMS lacks cu_seqlens_q"):
        one_model("llama", rank, size, update=False)
    return found


def one_model(name: str, rank: int, size: int, *, update: bool = True) -> dict[str, float]:
    model = build(name).eval()
    ids = compare.tokens(1, 40)
    # Transformers' own gpt-oss does not see that positions restart.
    cu_seqlens = torch.tensor([0, 40]) if name == "gpt_oss" else GLOBAL
    positions = torch.cat([torch.arange(stop - start) for start, stop in pairwise(cu_seqlens.tolist())])[None]
    expected = model(ids, position_ids=positions, use_cache=False).logits
    # What loading with attn_implementation="flash_attention_2" does where flash-attn is installed.
    model.config._attn_implementation = "flash_attention_2"
    if update:
        hf_adapter.update_ring_flash_attn_params(cu_seqlens, dist.group.WORLD)
    mine = slice(rank * 40 // size, (rank + 1) * 40 // size)
    logits = model(ids[:, mine], position_ids=positions[:, mine], use_cache=False).logits
    return {"logits": compare.relative(logits, expected[:, mine])}


def test_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off, and for modules that are not causal, transformers' own function runs."""
    from transformers import AttentionInterface

    calls: list[str] = []
    monkeypatch.setitem(hf_adapter._originals, "flash_attention_2", lambda *args, **kwargs: calls.append("original"))
    monkeypatch.setattr(hf_adapter, "flash_attention_forward", lambda *args, **kwargs: calls.append("ours"))
    before = AttentionInterface()["flash_attention_2"]
    switched, module = hf_adapter._switched("flash_attention_2"), torch.nn.Module()
    switched(module)
    hf_adapter.use_ring_attn(False)
    switched(module)
    hf_adapter.use_ring_attn(True)
    switched(module)
    module.is_causal = False
    switched(module)
    assert calls == ["ours", "original", "ours", "original"]
    assert AttentionInterface()["flash_attention_2"] is before
    assert hf_adapter.check_params(lambda a, b: None, lambda c, d: None)


def test_functions_as_they_are_called_elsewhere() -> None:
    run(as_called_elsewhere)


def as_called_elsewhere() -> dict[str, float]:
    """EasyContext positionally, OLMo-core by keywords with a group: one process's attention, in their layouts."""
    from ringattn.compat.ring_flash_attn.zigzag_ring_flash_attn import zigzag_ring_flash_attn_func

    rank, size = dist.get_rank(), dist.get_world_size()
    whole = [torch.randn(1, 16, heads, 8, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 3)]
    q, k, v = whole[0], whole[1], whole[1] * 2
    chunks = torch.arange(16).chunk(2 * size)
    mine = torch.cat([chunks[rank], chunks[2 * size - 1 - rank]])
    local = [x[:, mine] for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True
    ).transpose(1, 2)[:, mine]
    easy = zigzag_ring_flash_attn_func(*local, 0.0, None, True)
    olmo = rfa.zigzag_ring_flash_attn_func(
        *local, dropout_p=0.0, softmax_scale=8**-0.5, causal=True, window_size=(-1, -1), group=dist.group.WORLD
    )
    return {"EasyContext": compare.relative(easy, expected), "OLMo-core": compare.relative(olmo, expected)}
