"""ring-flash-attn as its users have it, over a kernel that is here: a stand-in takes the place of flash-attn.

ring-flash-attn 0.1.8 calls four private functions of flash-attn 2. `load` puts functions of the same signatures in
their place, which call FlashAttention-4, cuDNN or PyTorch's own FlashAttention-2 directly, and imports the package
without its Hugging Face adapter, which fails beside today's transformers.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ringattn_core.errors import UnsupportedError


def load(kernel: str) -> ModuleType:
    """The package ring_flash_attn over "flash_attn_4", "cudnn" or "torch_flash"; raises ImportError without it."""
    if kernel not in _INTERFACES:
        raise ImportError(f"ring-flash-attn takes flash-attn's functions, and {kernel} has none like them")
    if importlib.util.find_spec("flash_attn") is None:  # flash-attn-4 has this name, too, and stays
        _module("flash_attn", __path__=[])
    _module("flash_attn.flash_attn_interface", **_INTERFACES[kernel]())
    _module("ring_flash_attn.adapters", substitute_hf_flash_attn=None, update_ring_flash_attn_params=None)
    for name in [name for name in sys.modules if name.startswith("ring_flash_attn") and "adapters" not in name]:
        del sys.modules[name]
    return importlib.import_module("ring_flash_attn")


def _module(name: str, **contents: Any) -> ModuleType:
    module = sys.modules[name] = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # Those who look for a package ask for it.
    vars(module).update(contents)
    return module


def _flash_attn_4() -> dict[str, Any]:
    from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd

    def side(tokens: int) -> int | None:
        return None if tokens < 0 else tokens

    def forward(
        q, k, v, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
    ):  # fmt: skip
        mask = {"window_size_left": side(window_size_left), "window_size_right": side(window_size_right)}
        out, lse, *_ = _flash_attn_fwd(q, k, v, softmax_scale=softmax_scale, causal=causal, return_lse=True, **mask)
        return out, lse, None, None

    def varlen_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal=False,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
        block_table=None, leftpad_k=None, seqused_k=None, zero_tensors=False,
    ):  # fmt: skip
        mask = {"window_size_left": side(window_size_left), "window_size_right": side(window_size_right)}
        lengths = _lengths(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        out, lse, *_ = _flash_attn_fwd(
            q, k, v, softmax_scale=softmax_scale, causal=causal, return_lse=True, **mask, **lengths
        )
        return out, lse, None, None

    def backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, deterministic=False, rng_state=None,
    ):  # fmt: skip
        mask = {"window_size_left": side(window_size_left), "window_size_right": side(window_size_right)}
        grads = {"dq": dq, "dk": dk, "dv": dv, "deterministic": deterministic}
        _flash_attn_bwd(q, k, v, out, dout, softmax_lse, softmax_scale=softmax_scale, causal=causal, **mask, **grads)

    def varlen_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p, softmax_scale, causal, window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None,
        deterministic=False, rng_state=None, zero_tensors=False,
    ):  # fmt: skip
        mask = {"window_size_left": side(window_size_left), "window_size_right": side(window_size_right)}
        grads = {"dq": dq, "dk": dk, "dv": dv, "deterministic": deterministic}
        lengths = _lengths(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        _flash_attn_bwd(
            q, k, v, out, dout, softmax_lse, softmax_scale=softmax_scale, causal=causal, **mask, **grads, **lengths
        )

    return _named(forward, varlen_forward, backward, varlen_backward)


def _torch_flash() -> dict[str, Any]:
    run, run_backward = torch.ops.aten._flash_attention_forward, torch.ops.aten._flash_attention_backward

    def mask(left: int, right: int) -> dict[str, int]:
        return {} if (left, right) == (-1, -1) else {"window_size_left": left, "window_size_right": right}

    def forward(
        q, k, v, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
    ):  # fmt: skip
        sides = mask(window_size_left, window_size_right)
        lengths = (None, None, q.shape[1], k.shape[1])
        out, lse, *_ = run(q, k, v, *lengths, dropout_p, causal, False, scale=softmax_scale, **sides)
        return out, lse, None, None

    def varlen_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal=False,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
        block_table=None, leftpad_k=None, seqused_k=None, zero_tensors=False,
    ):  # fmt: skip
        sides = mask(window_size_left, window_size_right)
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        out, lse, *_ = run(q, k, v, *lengths, dropout_p, causal, False, scale=softmax_scale, **sides)
        return out, lse, None, None

    nothing = torch.empty(0, dtype=torch.int64, device="cuda")

    def backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, deterministic=False, rng_state=None,
    ):  # fmt: skip
        sides = mask(window_size_left, window_size_right)
        given = (dout, q, k, v, out, softmax_lse.contiguous(), None, None, q.shape[1], k.shape[1], dropout_p, causal)
        grads = run_backward(*given, nothing, nothing, scale=softmax_scale, **sides)
        _fill((dq, dk, dv), grads)

    def varlen_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p, softmax_scale, causal, window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None,
        deterministic=False, rng_state=None, zero_tensors=False,
    ):  # fmt: skip
        sides = mask(window_size_left, window_size_right)
        lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        given = (dout, q, k, v, out, softmax_lse.contiguous(), *lengths, dropout_p, causal)
        grads = run_backward(*given, nothing, nothing, scale=softmax_scale, **sides)
        _fill((dq, dk, dv), grads)

    return _named(forward, varlen_forward, backward, varlen_backward)


def _cudnn() -> dict[str, Any]:
    run = torch.ops.aten._scaled_dot_product_cudnn_attention
    run_backward = torch.ops.aten._scaled_dot_product_cudnn_attention_backward

    def forward(
        q, k, v, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
    ):  # fmt: skip
        _refuse_windows(window_size_left, window_size_right)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out, lse, *_ = run(q, k, v, None, True, dropout_p, causal, False, scale=softmax_scale)
        return out.transpose(1, 2), lse.squeeze(-1), None, None

    nothing = torch.empty(0, dtype=torch.int64, device="cuda")

    def backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, deterministic=False, rng_state=None,
    ):  # fmt: skip
        _refuse_windows(window_size_left, window_size_right)
        lengths = (None, None, q.shape[1], k.shape[1])
        dout, q, k, v, out = (x.transpose(1, 2) for x in (dout, q, k, v, out))
        given = (dout, q, k, v, out, softmax_lse.unsqueeze(-1).contiguous(), nothing, nothing, None)
        grads = run_backward(*given, *lengths, dropout_p, causal, scale=softmax_scale)
        _fill((dq, dk, dv), tuple(grad.transpose(1, 2) for grad in grads))

    def varlen(*_: Any, **__: Any) -> None:
        raise UnsupportedError("cuDNN has no packed sequences through PyTorch's operator")

    return _named(forward, varlen, backward, varlen)


def _refuse_windows(left: int, right: int) -> None:
    if (left, right) != (-1, -1):
        raise UnsupportedError("cuDNN has no windows through PyTorch's operator")


def _named(forward: Any, varlen_forward: Any, backward: Any, varlen_backward: Any) -> dict[str, Any]:
    return {
        "_flash_attn_forward": forward,
        "_flash_attn_varlen_forward": varlen_forward,
        "_flash_attn_backward": backward,
        "_flash_attn_varlen_backward": varlen_backward,
    }


def _lengths(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int) -> dict[str, Any]:
    return {
        "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_k": cu_seqlens_k,
        "max_seqlen_q": max_seqlen_q,
        "max_seqlen_k": max_seqlen_k,
    }


def _fill(places: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> None:
    """PyTorch's operator has no place for results, flash-attn's function writes into the caller's."""
    for place, grad in zip(places, grads, strict=True):
        place.copy_(grad)


_INTERFACES = {"flash_attn_4": _flash_attn_4, "torch_flash": _torch_flash, "cudnn": _cudnn}
