"""Stand-ins for the packages of FlashAttention 2, 3 and 4, which are not installed here: their signatures, other math.

The signatures and what comes back were read in the sources of flash-attn 2.6.3, 2.7.0.post2, 2.7.4.post1 and 2.8.3
(flash_attn/flash_attn_interface.py) and of tokenspeed-fa3 3.0.0.post20260810 (flash_attn_interface.py,
flash_attn_config.py), the rules for windows and lengths in csrc/flash_attn/flash_api.cpp of flash-attn 2.6.3 and 2.8.3
and in flash-attention's hopper/flash_api_stable.cpp and hopper/seqlen.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Lengths(NamedTuple):
    """What a call says about its sequences; with cu_seqlens None they are a batch."""

    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    seqused_q: Tensor | None = None
    seqused_k: Tensor | None = None


@dataclass(frozen=True)
class Mask:
    """What a call says about its scores."""

    scale: float
    causal: bool
    window: tuple[int, int]
    softcap: float = 0.0
    dropout_p: float = 0.0


class Forward(NamedTuple):
    out: Tensor
    lse: Tensor
    rng_state: Tensor


class Math(Protocol):
    """What computes a stand-in's calls."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, mask: Mask) -> Forward: ...

    def backward(
        self, given: tuple[Tensor, ...], lengths: Lengths, mask: Mask, rng_state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients from (dout, q, k, v, out, lse)."""
        ...


def flash_attn_2_6(math: Math) -> dict[str, ModuleType]:
    """flash-attn 2.6.3: windows are tuples, and eight values come back."""

    def forward(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_softmax):
        assert alibi_slopes is None and not return_softmax
        found = math.forward(q, k, v, Lengths(), Mask(softmax_scale, causal, window_size, softcap, dropout_p))
        return found.out, q, k, v, found.out, found.lse, None, found.rng_state

    def varlen_forward(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        return_softmax=False,
        block_table=None,
        leftpad_k=None,
        seqused_k=None,
    ):
        assert alibi_slopes is block_table is leftpad_k is seqused_k is None and not return_softmax
        lengths = Lengths(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        found = math.forward(q, k, v, lengths, Mask(softmax_scale, causal, window_size, softcap, dropout_p))
        return found.out, q, k, v, found.out, found.lse, None, found.rng_state

    def backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        dq,
        dk,
        dv,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        rng_state=None,
    ):
        assert alibi_slopes is None
        mask = Mask(softmax_scale, causal, window_size, softcap, dropout_p)
        _fill((dq, dk, dv), math.backward((dout, q, k, v, out, softmax_lse), Lengths(), mask, rng_state))
        return dq, dk, dv, None

    def varlen_backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        dq,
        dk,
        dv,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        rng_state=None,
    ):
        assert alibi_slopes is None
        lengths = Lengths(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        mask = Mask(softmax_scale, causal, window_size, softcap, dropout_p)
        _fill((dq, dk, dv), math.backward((dout, q, k, v, out, softmax_lse), lengths, mask, rng_state))
        return dq, dk, dv, None

    return _flash_attn("2.6.3", forward, varlen_forward, backward, varlen_backward)


def flash_attn_2_8(math: Math) -> dict[str, ModuleType]:
    """flash-attn 2.7 and 2.8: a window is two numbers, four values come back, gradients only in the tensors given."""

    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        window_size_left: int,
        window_size_right: int,
        softcap: float,
        alibi_slopes: Tensor | None,
        return_softmax: bool,
    ) -> tuple[Tensor, ...]:
        assert alibi_slopes is None and not return_softmax
        mask = Mask(softmax_scale, causal, (window_size_left, window_size_right), softcap, dropout_p)
        found = math.forward(q, k, v, Lengths(), mask)
        return found.out, found.lse, q.new_empty(0), found.rng_state

    def varlen_forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        window_size_left: int = -1,
        window_size_right: int = -1,
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        return_softmax: bool = False,
        block_table: Tensor | None = None,
        leftpad_k: Tensor | None = None,
        seqused_k: Tensor | None = None,
        zero_tensors: bool = False,
    ) -> tuple[Tensor, ...]:
        assert alibi_slopes is block_table is leftpad_k is seqused_k is None and not return_softmax
        lengths = Lengths(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        mask = Mask(softmax_scale, causal, (window_size_left, window_size_right), softcap, dropout_p)
        found = math.forward(q, k, v, lengths, mask)
        return found.out, found.lse, q.new_empty(0), found.rng_state

    def backward(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        softmax_lse: Tensor,
        dq: Tensor | None,
        dk: Tensor | None,
        dv: Tensor | None,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        window_size_left: int,
        window_size_right: int,
        softcap: float,
        alibi_slopes: Tensor | None,
        deterministic: bool,
        rng_state: Tensor | None = None,
    ) -> Tensor:
        assert alibi_slopes is None
        mask = Mask(softmax_scale, causal, (window_size_left, window_size_right), softcap, dropout_p)
        _fill((dq, dk, dv), math.backward((dout, q, k, v, out, softmax_lse), Lengths(), mask, rng_state))
        return softmax_lse

    def varlen_backward(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        softmax_lse: Tensor,
        dq: Tensor | None,
        dk: Tensor | None,
        dv: Tensor | None,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        window_size_left: int,
        window_size_right: int,
        softcap: float,
        alibi_slopes: Tensor | None,
        deterministic: bool,
        rng_state: Tensor | None = None,
        zero_tensors: bool = False,
    ) -> Tensor:
        assert alibi_slopes is None
        lengths = Lengths(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        mask = Mask(softmax_scale, causal, (window_size_left, window_size_right), softcap, dropout_p)
        _fill((dq, dk, dv), math.backward((dout, q, k, v, out, softmax_lse), lengths, mask, rng_state))
        return softmax_lse

    return _flash_attn("2.8.3.post1", forward, varlen_forward, backward, varlen_backward)


def flash_attn_3(math: Math, *left_out: str) -> dict[str, ModuleType]:
    """flash_attn_interface and its flash_attn_config; `left_out` of the build are flags without their prefix."""

    def _flash_attn_forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_new: Tensor | None = None,
        v_new: Tensor | None = None,
        qv: Tensor | None = None,
        out_: Tensor | None = None,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        cu_seqlens_k_new: Tensor | None = None,
        seqused_q: Tensor | None = None,
        seqused_k: Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
        page_table: Tensor | None = None,
        kv_batch_idx: Tensor | None = None,
        leftpad_k: Tensor | None = None,
        rotary_cos: Tensor | None = None,
        rotary_sin: Tensor | None = None,
        seqlens_rotary: Tensor | None = None,
        q_descale: Tensor | None = None,
        k_descale: Tensor | None = None,
        v_descale: Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size_left: int = -1,
        window_size_right: int = -1,
        attention_chunk: int = 0,
        softcap: float = 0.0,
        rotary_interleaved: bool = True,
        scheduler_metadata: Tensor | None = None,
        num_splits: int = 1,
        pack_gqa: bool | None = None,
        sm_margin: int = 0,
        sinks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert softmax_scale is not None
        lengths = Lengths(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q, seqused_k)
        mask = Mask(softmax_scale, causal, (window_size_left, window_size_right), softcap)
        found = math.forward(q, k, v, lengths, mask)
        return found.out, found.lse, q.new_empty(0), q.new_empty(0)

    def _flash_attn_backward(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        softmax_lse: Tensor,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        sequed_q: Tensor | None = None,
        sequed_k: Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
        dq: Tensor | None = None,
        dk: Tensor | None = None,
        dv: Tensor | None = None,
        softmax_scale: float | None = None,
        is_causal: bool = False,
        window_size_left: int = -1,
        window_size_right: int = -1,
        softcap: float = 0.0,
        deterministic: bool = False,
        sm_margin: int = 0,
    ) -> Tensor:
        assert softmax_scale is not None and "BACKWARD" not in left_out
        lengths = Lengths(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, sequed_q, sequed_k)
        mask = Mask(softmax_scale, is_causal, (window_size_left, window_size_right), softcap)
        _fill((dq, dk, dv), math.backward((dout, q, k, v, out, softmax_lse), lengths, mask, None))
        return softmax_lse

    interface = _module("flash_attn_interface")
    interface.__dict__.update(_flash_attn_forward=_flash_attn_forward, _flash_attn_backward=_flash_attn_backward)
    config = _module("flash_attn_config")
    flags = (
        "BACKWARD",
        "SPLIT",
        "LOCAL",
        "SOFTCAP",
        "FP16",
        "VARLEN",
        "HDIM64",
        "HDIM96",
        "HDIM128",
        "HDIM192",
        "HDIM256",
    )
    build: dict[str, Any] = {f"FLASHATTENTION_DISABLE_{flag}": flag in left_out for flag in flags}
    build["FLASHATTENTION_ENABLE_VCOLMAJOR"] = False
    build["FLASH_ATTENTION_DISABLE_HDIMDIFF192"] = "HDIMDIFF192" in left_out
    config.__dict__["CONFIG"] = {"build_flags": build}
    return {"flash_attn_interface": interface, "flash_attn_config": config}


def flash_attn_4(math: Math) -> dict[str, ModuleType]:
    """flash-attn-4: of its signatures what the wrapper says by name; an open side of a window is None."""

    def mask_of(scale: float, left: int | None, right: int | None, softcap: float) -> Mask:
        assert left is None or left >= 0 or right is not None
        return Mask(scale, False, tuple(-1 if side is None else side for side in (left, right)), softcap)

    def _flash_attn_fwd(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        softmax_scale: float,
        softcap: float,
        window_size_left: int | None,
        window_size_right: int | None,
        return_lse: bool,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        **lengths: Any,
    ) -> tuple[Tensor, Tensor]:
        assert return_lse
        mask = mask_of(softmax_scale, window_size_left, window_size_right, softcap)
        found = math.forward(q, k, v, Lengths(**lengths), mask)
        if out is None or lse is None:
            return found.out, found.lse
        return _write(out, found.out), _write(lse, found.lse)

    def _flash_attn_bwd(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        dout: Tensor,
        lse: Tensor,
        *,
        softmax_scale: float,
        softcap: float,
        window_size_left: int | None,
        window_size_right: int | None,
        deterministic: bool,
        dq: Tensor | None = None,
        dk: Tensor | None = None,
        dv: Tensor | None = None,
        **lengths: Any,
    ) -> tuple[Tensor, ...]:
        mask = mask_of(softmax_scale, window_size_left, window_size_right, softcap)
        grads = math.backward((dout, q, k, v, out, lse), Lengths(**lengths), mask, None)
        return tuple(
            grad if place is None else _write(place, grad) for place, grad in zip((dq, dk, dv), grads, strict=True)
        )

    package, cute, interface = (_module(f"flash_attn{part}") for part in ("", ".cute", ".cute.interface"))
    package.__dict__.update(__path__=[], cute=cute)
    cute.__dict__.update(__path__=[], interface=interface)
    interface.__dict__.update(_flash_attn_fwd=_flash_attn_fwd, _flash_attn_bwd=_flash_attn_bwd)
    return {"flash_attn": package, "flash_attn.cute": cute, "flash_attn.cute.interface": interface}


def _write(place: Tensor, found: Tensor) -> Tensor:
    """What lies between sequences, where dense results are NaN, is left alone."""
    assert place.shape == found.shape
    return place.copy_(torch.where(found.isnan(), place, found))


def _flash_attn(version: str, forward, varlen_forward, backward, varlen_backward) -> dict[str, ModuleType]:
    package, interface = _module("flash_attn"), _module("flash_attn.flash_attn_interface")
    package.__dict__.update(__version__=version, __path__=[], flash_attn_interface=interface)
    interface.__dict__.update(
        _flash_attn_forward=forward,
        _flash_attn_varlen_forward=varlen_forward,
        _flash_attn_backward=backward,
        _flash_attn_varlen_backward=varlen_backward,
    )
    return {"flash_attn": package, "flash_attn.flash_attn_interface": interface}


def _module(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    return module


def _fill(places: tuple[Tensor | None, ...], grads: tuple[Tensor, ...]) -> None:
    for place, grad in zip(places, grads, strict=True):
        assert place is not None and place.shape == grad.shape and place.dtype == grad.dtype and place.stride(-1) == 1
        place.copy_(grad)


class Sequence(NamedTuple):
    """A sequence of a packed call: its rows, its columns, and which cells are live."""

    rows: slice
    columns: slice
    live: Tensor


class Dense:
    """Dense attention in the inputs' dtype, with the kernels' rules for lengths and windows; unused rows are NaN.

    `rule` is 2 or 3, FlashAttention's number: what a window's right side is compared with.
    """

    def __init__(self, rule: int) -> None:
        self.rule = rule
        self.calls: list[tuple[Lengths, Mask]] = []
        self._generator = torch.Generator().manual_seed(1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, mask: Mask) -> Forward:
        self.calls.append((lengths, mask))
        rng_state = torch.randint(1 << 60, (2,), generator=self._generator)
        q, k, v = (_flat(x, lengths) for x in (q, k, v))
        out, lse = q.new_full((*q.shape[:2], v.shape[2]), torch.nan), q.new_full((q.shape[1], len(q)), torch.nan)
        for number, (rows, columns, live) in enumerate(self._sequences(q, k, lengths, mask)):
            scores, _ = _scores(q[rows], k[columns], live, mask)
            lse[:, rows] = torch.logsumexp(scores, dim=-1)
            weights = torch.softmax(scores, dim=-1) * _kept(scores, mask, rng_state, number)
            out[rows] = (weights @ _shared(v[columns], q)).transpose(0, 1)
        batched = lengths.cu_seqlens_q is None
        return Forward(out[None] if batched else out, lse[None] if batched else lse, rng_state)

    def backward(
        self, given: tuple[Tensor, ...], lengths: Lengths, mask: Mask, rng_state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.calls.append((lengths, mask))
        assert given[5].is_contiguous(), "the kernels look at no stride of lse"
        dout, q, k, v, out, lse = (_flat(x, lengths) for x in given)
        grads = [torch.full_like(x, torch.nan) for x in (q, k, v)]
        for number, (rows, columns, live) in enumerate(self._sequences(q, k, lengths, mask)):
            scores, slope = _scores(q[rows], k[columns], live, mask)
            weights = torch.exp(scores - lse[:, rows, None])
            kept = _kept(scores, mask, rng_state, number)
            pulled = (dout[rows].transpose(0, 1) @ _shared(v[columns], q).mT) * kept
            delta = (dout[rows] * out[rows]).sum(-1).T
            dscores = weights * (pulled - delta[:, :, None]) * slope * mask.scale
            grads[0][rows] = (dscores @ _shared(k[columns], q)).transpose(0, 1)
            grads[1][columns] = _summed(dscores.mT @ q[rows].transpose(0, 1), k)
            grads[2][columns] = _summed((weights * kept).mT @ dout[rows].transpose(0, 1), v)
        dq, dk, dv = (grad[None] if lengths.cu_seqlens_q is None else grad for grad in grads)
        return dq, dk, dv

    def _sequences(self, q: Tensor, k: Tensor, lengths: Lengths, mask: Mask) -> Iterator[Sequence]:
        rows, columns = (
            _ranges(lengths.cu_seqlens_q, lengths.seqused_q, q),
            _ranges(lengths.cu_seqlens_k, lengths.seqused_k, k),
        )
        if self.rule == 2:
            assert rows[-1].stop == len(q) and columns[-1].stop == len(k), "tokens that belong to no sequence"
        most_q = max(len(part) for part in rows) if lengths.max_seqlen_q is None else lengths.max_seqlen_q
        most_k = max(len(part) for part in columns) if lengths.max_seqlen_k is None else lengths.max_seqlen_k
        assert most_q >= max(map(len, rows)) and most_k >= max(map(len, columns))
        left, right = self._window(mask, most_q, most_k)
        for part_q, part_k in zip(rows, columns, strict=True):
            apart = torch.arange(len(part_k)) - torch.arange(len(part_q))[:, None] - (len(part_k) - len(part_q))
            live = (apart >= -left) & (apart <= right)
            yield Sequence(slice(part_q.start, part_q.stop), slice(part_k.start, part_k.stop), live)

    def _window(self, mask: Mask, most_q: int, most_k: int) -> tuple[int, int]:
        """As the C++ of each reads a window, the slip of FlashAttention-2 included; open is far."""
        left, right = mask.window
        bounds = (most_k, most_k) if self.rule == 2 else (most_k - 1, most_q - 1)
        left, right = (-1 if side >= bound else side for side, bound in zip((left, right), bounds, strict=True))
        right = 0 if mask.causal else right
        if left < 0 and right < 0:
            return most_k + most_q, most_k + most_q
        return bounds[0] if left < 0 else left, bounds[1] if right < 0 else right


def _flat(x: Tensor, lengths: Lengths) -> Tensor:
    if lengths.cu_seqlens_q is not None:
        return x
    assert x.shape[0] == 1, "batches of one are all that is needed"
    return x[0]


def _ranges(cu_seqlens: Tensor | None, seqused: Tensor | None, x: Tensor) -> list[range]:
    if cu_seqlens is None:
        return [range(len(x))]
    assert cu_seqlens.dtype == torch.int32 and (seqused is None or seqused.dtype == torch.int32)
    starts = cu_seqlens.tolist()
    used = cu_seqlens.diff().tolist() if seqused is None else seqused.tolist()
    return [range(start, start + length) for start, length in zip(starts, used, strict=False)]


def _scores(q: Tensor, k: Tensor, live: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Scores, (heads, rows, columns), and the slope of softcap."""
    scores, slope = q.transpose(0, 1) @ _shared(k, q).mT * mask.scale, torch.ones(())
    if mask.softcap:
        squashed = torch.tanh(scores / mask.softcap)
        scores, slope = squashed * mask.softcap, 1 - squashed**2
    return scores.masked_fill(~live, -torch.inf), slope


def _kept(scores: Tensor, mask: Mask, rng_state: Tensor | None, number: int) -> Tensor | float:
    if not mask.dropout_p:
        return 1.0
    assert rng_state is not None, "dropout without its random state"
    generator = torch.Generator().manual_seed(int(rng_state[0]) + number)
    drawn = torch.rand(scores.shape, generator=generator, dtype=scores.dtype)
    return (drawn >= mask.dropout_p) / (1 - mask.dropout_p)


def _shared(x: Tensor, q: Tensor) -> Tensor:
    """(columns, num_kv_heads, dim) -> (num_heads, columns, dim)"""
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1).transpose(0, 1)


def _summed(x: Tensor, like: Tensor) -> Tensor:
    """(num_heads, columns, dim) -> (columns, num_kv_heads, dim)"""
    return x.unflatten(0, (like.shape[1], -1)).sum(1).transpose(0, 1)


class Torch:
    """PyTorch's own FlashAttention-2, on a GPU: calls of FlashAttention 2 as they are, of 3 a sequence at a time."""

    def __init__(self, rule: int) -> None:
        self.rule = rule

    def forward(self, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, mask: Mask) -> Forward:
        if self.rule == 2:
            return Forward(*_torch_forward(q, k, v, lengths, mask))
        batched = lengths.cu_seqlens_q is None
        q, k, v = (_flat(x, lengths) for x in (q, k, v))
        out, lse = q.new_empty(q.shape), q.new_empty((q.shape[1], len(q)), dtype=torch.float32)
        for rows, columns, one in _one_by_one(q, k, lengths):
            out[rows], lse[:, rows], _ = _torch_forward(q[rows], k[columns], v[columns], one, mask)
        return Forward(out[None] if batched else out, lse[None] if batched else lse, lse.new_empty(0))

    def backward(
        self, given: tuple[Tensor, ...], lengths: Lengths, mask: Mask, rng_state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.rule == 2:
            return _torch_backward(given, lengths, mask, rng_state)
        dout, q, k, v, out, lse = (_flat(x, lengths) for x in given)
        grads = [torch.empty_like(x) for x in (q, k, v)]
        for rows, columns, one in _one_by_one(q, k, lengths):
            parts = dout[rows], q[rows], k[columns], v[columns], out[rows], lse[:, rows].contiguous()
            grads[0][rows], grads[1][columns], grads[2][columns] = _torch_backward(parts, one, mask, None)
        dq, dk, dv = (grad[None] if lengths.cu_seqlens_q is None else grad for grad in grads)
        return dq, dk, dv


def _torch_forward(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
    out, lse, rng_state, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, *_cumulative(q, k, lengths), mask.dropout_p, mask.causal, False, **_arguments(mask)
    )
    return out, lse, rng_state


def _torch_backward(
    given: tuple[Tensor, ...], lengths: Lengths, mask: Mask, rng_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    nothing = torch.empty(0, dtype=torch.int64, device=given[0].device)
    return torch.ops.aten._flash_attention_backward(
        *(*given, *_cumulative(given[1], given[2], lengths), mask.dropout_p, mask.causal),
        *(nothing if rng_state is None else rng_state, nothing),
        **_arguments(mask),
    )


def _one_by_one(q: Tensor, k: Tensor, lengths: Lengths) -> Iterator[tuple[slice, slice, Lengths]]:
    """The sequences of a call, and what FlashAttention-2 has to be told to compute each alone, whatever the window."""
    rows = _ranges(lengths.cu_seqlens_q, lengths.seqused_q, q)
    columns = _ranges(lengths.cu_seqlens_k, lengths.seqused_k, k)
    for part_q, part_k in zip(rows, columns, strict=True):
        most = len(part_q), max(len(part_q), len(part_k))
        borders = (torch.tensor([0, len(part)], dtype=torch.int32, device=q.device) for part in (part_q, part_k))
        yield slice(part_q.start, part_q.stop), slice(part_k.start, part_k.stop), Lengths(*borders, *most)


def _cumulative(q: Tensor, k: Tensor, lengths: Lengths) -> tuple[Tensor | None, Tensor | None, int, int]:
    if lengths.cu_seqlens_q is None:
        return None, None, q.shape[1], k.shape[1]
    assert lengths.max_seqlen_q is not None and lengths.max_seqlen_k is not None
    return lengths.cu_seqlens_q, lengths.cu_seqlens_k, lengths.max_seqlen_q, lengths.max_seqlen_k


def _arguments(mask: Mask) -> dict[str, Any]:
    assert not mask.softcap, "PyTorch's has no softcap"
    left, right = mask.window
    window = {} if mask.window == (-1, -1) else {"window_size_left": left, "window_size_right": right}
    return {"scale": mask.scale} | window
