"""How other projects call ring-flash-attention, as their users see it: the answers are those of one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import oracle
import processes
from adapters.compat import packed
from adapters.hf import compare
from adapters.hf.models import build
from adapters.sharded import LLAMA3, RING, ZIGZAG, ZIGZAG_VARLEN, Family, Whole, draw, truth
from ringattn.compat import ring_flash_attn as rfa
from ringattn.compat.ring_flash_attn.adapters import hf_adapter
from ringattn.compat.ring_flash_attn.utils import AllGatherComm, get_default_args
from ringattn.lengths import sequence_positions

Errors = dict[str, float]


def check(size: int, function: Any) -> None:
    for found in processes.run(size, function, timeout=120):
        wrong = {name: error for name, error in found.items() if not error <= 1e-5}
        assert found and not wrong


def case(family: Family, borders: list[int]) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """This rank's q, k and v, the gradient of its out, and what the oracle says of out and of their gradients."""
    batch = () if family.packed else (2,)
    whole = draw(borders[-1], batch, dtype=torch.float32)
    rows = family.rows(borders, dist.get_world_size())[dist.get_rank()]
    # Nothing is asked of lse here.
    expected = truth(Whole(*whole[:4], torch.zeros_like(whole.dlse)), borders if family.packed else None, causal=True)
    own = [x.index_select(-3, rows) for x in whole[:4]]
    answers = {name: getattr(expected, name).index_select(-3, rows).float() for name in ("out", "dq", "dk", "dv")}
    return [x.requires_grad_() for x in own[:3]], own[3], answers


def differences(name: str, out: Tensor, leaves: list[Tensor], dout: Tensor, expected: dict[str, Tensor]) -> Errors:
    grads = torch.autograd.grad(out, leaves, dout)
    found = dict(zip(expected, (out.detach(), *grads), strict=True))
    return {f"{name} {key}": compare.relative(found[key], expected[key]) for key in expected}


def log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def test_easy_context() -> None:
    """EasyContext and its forks: positional arguments, from the module, in the place of FlashAttention."""
    check(2, easy_context)


def easy_context() -> Errors:
    from ringattn.compat.ring_flash_attn.zigzag_ring_flash_attn import zigzag_ring_flash_attn_func
    from ringattn.compat.ring_flash_attn.zigzag_ring_flash_attn_varlen import zigzag_ring_flash_attn_varlen_func

    leaves, dout, expected = case(ZIGZAG, [0, 16])
    out = zigzag_ring_flash_attn_func(*leaves, 0.0, None, True)
    found = differences("func", out, leaves, dout, expected)
    borders = [0, 8, 24]
    leaves, dout, expected = case(ZIGZAG_VARLEN, borders)
    out = zigzag_ring_flash_attn_varlen_func(*leaves, torch.tensor(borders, dtype=torch.int32) // 2, 8, causal=True)
    return found | differences("varlen", out, leaves, dout, expected)


def test_olmo_core() -> None:
    """OLMo-core: keywords and a group throughout, packed qkv, and llama 3's lengths prepared on the CPU."""
    check(2, olmo_core)


def olmo_core() -> Errors:
    group, found = dist.group.WORLD, Errors()
    tail = {"dropout_p": 0.0, "softmax_scale": 8**-0.5, "causal": True, "window_size": (-1, -1), "group": group}
    leaves, dout, expected = case(ZIGZAG, [0, 16])
    found |= differences("zigzag", rfa.zigzag_ring_flash_attn_func(*leaves, **tail), leaves, dout, expected)
    borders = torch.tensor([0, 8, 24], dtype=torch.int32)
    local = {"cu_seqlens": borders // 2, "max_seqlen": 8}
    leaves, dout, expected = case(ZIGZAG_VARLEN, borders.tolist())
    out = rfa.zigzag_ring_flash_attn_varlen_func(*leaves, **local, **tail)
    found |= differences("varlen", out, leaves, dout, expected)
    # As many heads of keys as of queries: the two of k and v twice.
    qkv = torch.stack([leaves[0], *(x.repeat_interleave(2, dim=1) for x in leaves[1:])], dim=1)
    out = rfa.zigzag_ring_flash_attn_varlen_qkvpacked_func(qkv, **local, **tail)
    found |= differences("qkvpacked", out, leaves, dout, expected)
    leaves, dout, expected = case(LLAMA3, borders.tolist())
    lengths = rfa.llama3_flash_attn_prepare_cu_seqlens(borders, True, dist.get_rank(group), dist.get_world_size(group))
    names = "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "local_k_slice"
    told = dict(zip(names, lengths, strict=True))
    out = rfa.llama3_flash_attn_varlen_func(*leaves, heads_k_stride=1, **told, **tail)
    return found | differences("llama3", out, leaves, dout, expected)


def test_openrlhf() -> None:
    """OpenRLHF: one substitution; every batch padded to the group and announced; log-probs gathered afterwards."""
    check(2, openrlhf)


def openrlhf() -> Errors:
    """It closes the borders twice where nothing was padded, which makes a sequence of no tokens."""
    rfa.substitute_hf_flash_attn(dist.group.WORLD, 1)
    model, found = build("qwen2").eval(), {}
    for lengths, padding in (((8, 16, 16), 0), ((11, 20), 1)):
        total = sum(lengths) + padding
        cu_seqlens = torch.cumsum(torch.tensor(lengths, dtype=torch.int32), dim=-1, dtype=torch.int32)
        cu_seqlens = nn.functional.pad(nn.functional.pad(cu_seqlens, (1, 0)), (0, 1), value=total)
        ids = compare.tokens(1, total)
        positions = sequence_positions(cu_seqlens.tolist())[None]
        targets = ids.roll(-1, dims=1)
        model.config._attn_implementation = "eager"
        expected = log_probs(model(ids, position_ids=positions, use_cache=False).logits, targets)
        packed.to_flash(model)
        rfa.update_ring_flash_attn_params(cu_seqlens, dist.group.WORLD)
        logits = model(packed.mine(ids), position_ids=packed.mine(positions), use_cache=False).logits
        own = log_probs(logits, packed.mine(targets))
        gathered = [torch.empty_like(own) for _ in range(2)]
        dist.all_gather(gathered, own.detach())
        found[f"{lengths}"] = compare.relative(torch.cat(gathered, dim=1), expected.detach())
    return found


def test_slime() -> None:
    """slime and miles: replicas and shares in one mesh, and another packing at every step."""
    check(4, slime)


def slime() -> Errors:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "cp"))
    group, replica = mesh["cp"].get_group(), mesh["dp"].get_local_rank()
    rfa.substitute_hf_flash_attn(group, heads_k_stride=1)
    model, found = build("qwen3").eval(), {}
    for step, borders in enumerate(([0, 14, 24], [0, 3, 17, 23])):
        ids = compare.tokens(1, borders[-1], seed=replica)
        positions, targets = sequence_positions(borders)[None], ids.roll(-1, dims=1)
        # The padding, to a multiple of the group, belongs to the last sequence.
        padding = -borders[-1] % dist.get_world_size(group)
        cu_seqlens = torch.tensor([*borders[:-1], borders[-1] + padding], dtype=torch.int32)
        padded = [nn.functional.pad(x, (0, padding)) for x in (ids, positions, targets)]
        model.config._attn_implementation = "eager"
        expected = log_probs(model(ids, position_ids=positions, use_cache=False).logits, targets)
        gradient = torch.autograd.grad(expected.sum(), model.model.embed_tokens.weight)[0]
        packed.to_flash(model)
        rfa.update_ring_flash_attn_params(cu_seqlens, group)
        own_ids, own_positions, own_targets = (packed.mine(x, group) for x in padded)
        own = log_probs(model(own_ids, position_ids=own_positions, use_cache=False).logits, own_targets)
        shares = [torch.empty_like(own) for _ in range(2)]
        dist.all_gather(shares, own.detach(), group=group)
        whole = torch.cat(shares, dim=1)[:, : borders[-1]]
        found[f"log-probs of {step}"] = compare.relative(whole, expected.detach())
        real = torch.arange(borders[-1] + padding)[None] < borders[-1]
        loss = (own * packed.mine(real, group)).sum()
        own_gradient = torch.autograd.grad(loss, model.model.embed_tokens.weight)[0]
        dist.all_reduce(own_gradient, group=group)
        found[f"gradient of {step}"] = compare.relative(own_gradient, gradient)
    return found


def test_axolotl() -> None:
    """axolotl: its own forward in the place of ours for packed rows; for batches, in the place of transformers'."""
    check(2, axolotl)


def axolotl() -> Errors:
    found, group, calls = Errors(), dist.group.WORLD, list[Any]()

    def create(process_group: Any, heads_k_stride: int) -> list[Any]:
        def forward(q: Tensor, k: Tensor, v: Tensor, *args: Any, is_causal: bool, **kwargs: Any) -> Tensor:
            calls.append(kwargs["softmax_scale"])
            return rfa.llama3_flash_attn_varlen_func(
                *(x.squeeze(dim=0) for x in (q, k, v)),
                **hf_adapter.DATA_PARAMS,
                heads_k_stride=heads_k_stride,
                dropout_p=kwargs["dropout"],
                softmax_scale=kwargs["softmax_scale"],
                causal=is_causal,
                group=process_group,
            ).unsqueeze(dim=0)

        return [forward]

    # Before anything is substituted, for a model of batches: transformers' function replaced, ours registered.
    import transformers.modeling_flash_attention_utils as utils
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def batched(q: Tensor, k: Tensor, v: Tensor, *args: Any, is_causal: bool, **kwargs: Any) -> Tensor:
        calls.append(kwargs["query_length"])
        return rfa.ring_flash_attn_func(q, k, v, causal=is_causal, softmax_scale=kwargs["softmax_scale"], group=group)

    originals = utils._flash_attention_forward, ALL_ATTENTION_FUNCTIONS["flash_attention_2"]
    utils._flash_attention_forward = batched
    ALL_ATTENTION_FUNCTIONS["flash_attention_2"] = hf_adapter.flash_attention_forward
    found |= {
        f"batch {key}": error for key, error in packed.errors(build("llama").eval(), (0, 40), update=False).items()
    }
    assert calls == [20, 20]
    utils._flash_attention_forward, ALL_ATTENTION_FUNCTIONS["flash_attention_2"] = originals

    hf_adapter.create_ring_flash_attention_forward = create
    hf_adapter.substitute_hf_flash_attn(process_group=group, heads_k_stride=2)
    found |= {f"packed {key}": error for key, error in packed.errors(build("llama").eval()).items()}
    assert len(calls) == 4
    return found


def test_prime_rl() -> None:
    """prime-rl: layers of its own that read the announced lengths, and a kernel of its own on gathered keys."""
    check(2, prime_rl)


def prime_rl() -> Errors:
    borders, group = [0, 8, 24, 40], dist.group.WORLD
    rfa.update_ring_flash_attn_params(torch.tensor(borders, dtype=torch.int32), group)
    told = hf_adapter.DATA_PARAMS
    leaves, dout, expected = case(LLAMA3, borders)
    out = rfa.llama3_flash_attn_varlen_func(
        *leaves,
        cu_seqlens_q=told["cu_seqlens_q"],
        cu_seqlens_k=told["cu_seqlens_k"],
        max_seqlen_q=told["max_seqlen_q"],
        max_seqlen_k=told["max_seqlen_k"],
        heads_k_stride=1,
        local_k_slice=told["local_k_slice"],
        causal=True,
        window_size=(39, 0),
        group=group,
    )
    found = differences("layer", out, leaves, dout, expected)

    def kernel(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Any, cu_seqlens_k: Any, causal: bool = False) -> Tensor:
        window = (-1, 0 if causal else -1)
        return oracle.attention(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale=q.shape[-1] ** -0.5, window=window)[
            0
        ]

    comm, q, k, v = AllGatherComm(group), *(x.detach() for x in leaves)
    buffers = [torch.empty(2 * len(x), *x.shape[1:]) for x in (k, v)]
    for buffer, x in zip(buffers, (k, v), strict=True):
        comm.all_gather(buffer, x)
    comm.wait()
    arguments = get_default_args(kernel) | {"q": q, "causal": True}
    arguments |= {name: buffer[told["local_k_slice"]] for name, buffer in zip(("k", "v"), buffers, strict=True)}
    arguments |= {name: tuple(told[name].tolist()) for name in ("cu_seqlens_q", "cu_seqlens_k")}
    return found | {"kernel": compare.relative(kernel(**arguments), expected["out"])}


def test_llama_factory() -> None:
    """360-LLaMA-Factory and vendored copies: the function positionally up to dropout, the rest by keywords."""
    check(2, llama_factory)


def llama_factory() -> Errors:
    found = Errors()
    for family in (RING, ZIGZAG):
        leaves, dout, expected = case(family, [0, 16])
        out = family.function()(*leaves, 0.0, softmax_scale=None, causal=True, group=dist.group.WORLD)
        found |= differences(str(family), out, leaves, dout, expected)
    return found
