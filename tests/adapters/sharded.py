"""Attention as users call it, on whole tensors that are cut over threads, and what the oracle says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

import oracle
import ringattn
from adapters.comms import Mute
from problem import distance
from ringattn import attention
from ringattn.compat import ring_flash_attn
from ringattn.context_parallel import ContextParallel
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator

Attend = Callable[[Tensor, Tensor, Tensor, Communicator], tuple[Tensor, Tensor]]
"""(q, k, v, comm) -> (out, lse), of one rank's tokens."""


class Whole(NamedTuple):
    """The tokens of all ranks: (..., tokens, heads, dim), and `dlse` (..., heads, tokens)."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    dlse: Tensor


class Answer(NamedTuple):
    """What a forward and a backward pass found, for the tokens of all ranks."""

    out: Tensor
    lse: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor


def draw(
    tokens: int = 24,
    batch: tuple[int, ...] = (2,),
    *,
    tokens_k: int | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 8,
    dim_v: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Whole:
    """The same numbers whatever the dtype; `batch` is () for packed tensors."""
    generator = torch.Generator().manual_seed(heads * 1000 + tokens)
    tokens_k, dim_v = tokens_k or tokens, dim_v or dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(*batch, *shape, generator=generator, dtype=torch.float64).to(dtype)

    return Whole(
        normal(tokens, heads, dim),
        normal(tokens_k, kv_heads, dim),
        normal(tokens_k, kv_heads, dim_v),
        normal(tokens, heads, dim_v),
        normal(heads, tokens).to(torch.promote_types(dtype, torch.float32)),
    )


def solve(size: int, attend: Attend, whole: Whole, rows: Sequence[Tensor], rows_k: Sequence[Tensor] = ()) -> Answer:
    """Forward and backward on `size` ranks, of which each has the tokens that `rows` names."""

    def main(comm: Communicator) -> Answer:
        return attend_on(comm, attend, whole, rows[comm.rank], (rows_k or rows)[comm.rank])

    return assembled(run(size, main), rows, rows_k or rows)


def rows_of(cp: ContextParallel, length: int, size: int) -> list[Tensor]:
    """For every rank, which of so many tokens it holds under the layout of `cp`."""
    divided = replace(cp, group=Mute(0, size), cu_seqlens=cp.cu_seqlens or [0, length])
    return [torch.tensor(divided.division(length).positions(rank), dtype=torch.int64) for rank in range(size)]


def solve_native(
    size: int,
    whole: Whole,
    *,
    cu_seqlens: Sequence[int] | Tensor | None = None,
    cu_seqlens_k: Sequence[int] | Tensor | None = None,
    layout: str = "zigzag",
    sinks: Tensor | None = None,
    **options: Any,
) -> Answer:
    """The native API's answer on `size` threads; options of `ContextParallel` are taken out of the others.

    `mask` is that of the ContextParallel, and `call_mask` that of the call.
    """
    names = "route", "per_sequence", "head_groups", "kernel", "mask"
    own = {name: options.pop(name) for name in names if name in options}
    options["mask"] = options.pop("call_mask", None)
    cp = ContextParallel(None, layout, **own)
    lengths = [None if x is None else torch.as_tensor(x).tolist() for x in (cu_seqlens, cu_seqlens_k)]
    rows = rows_of(replace(cp, cu_seqlens=lengths[0]), whole.q.shape[-3], size)
    rows_k = rows_of(replace(cp, cu_seqlens=lengths[1] or lengths[0]), whole.k.shape[-3], size)

    def attend(q: Tensor, k: Tensor, v: Tensor, comm: Communicator) -> tuple[Tensor, Tensor]:
        mine = replace(cp, group=comm)
        more = {"cu_seqlens": cu_seqlens, "cu_seqlens_k": cu_seqlens_k, "sinks": sinks} | options
        return attention(q, k, v, cp=mine, return_lse=True, **more)

    return solve(size, attend, whole, rows, rows_k)


def attend_on(comm: Communicator, attend: Attend, whole: Whole, rows: Tensor, rows_k: Tensor) -> Answer:
    """One rank's forward and backward pass."""
    q, k, v = (
        x.index_select(-3, index).requires_grad_() for x, index in zip(whole[:3], (rows, rows_k, rows_k), strict=True)
    )
    out, lse = attend(q, k, v, comm)
    dlse = whole.dlse[..., rows].masked_fill(lse.isinf(), 0.0)
    torch.autograd.backward((out, lse), (whole.dout.index_select(-3, rows), dlse))
    assert q.grad is not None and k.grad is not None and v.grad is not None
    return Answer(out.detach(), lse.detach(), q.grad, k.grad, v.grad)


def assembled(parts: Sequence[Answer], rows: Sequence[Tensor], rows_k: Sequence[Tensor]) -> Answer:
    """The ranks' answers put together in the order of the sequence."""
    order, order_k = torch.cat(list(rows)).argsort(), torch.cat(list(rows_k)).argsort()
    out, lse, dq, dk, dv = zip(*parts, strict=True)
    return Answer(
        torch.cat(out, dim=-3).index_select(-3, order),
        torch.cat(lse, dim=-1)[..., order],
        torch.cat(dq, dim=-3).index_select(-3, order),
        torch.cat(dk, dim=-3).index_select(-3, order_k),
        torch.cat(dv, dim=-3).index_select(-3, order_k),
    )


def truth(
    whole: Whole,
    cu_seqlens: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
    *,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softmax_scale: float | None = None,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Answer:
    """The oracle's answer, row by row of the batch, computed in `dtype` from the inputs as they are."""
    q, k, v = (x.to(dtype, copy=True).requires_grad_() for x in whole[:3])
    borders = tuple(cu_seqlens or (0, q.shape[-3]))
    borders_k = tuple(cu_seqlens_k or (borders if cu_seqlens else (0, k.shape[-3])))
    options["window"] = (window_size[0], 0 if causal else window_size[1])
    options["softmax_scale"] = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    slopes, kept, live = (options.pop(name, None) for name in ("alibi_slopes", "kept", "live"))

    def row(at: int, *x: Tensor) -> tuple[Tensor, Tensor]:
        of_rows = q.dim() == 4 and slopes is not None and slopes.dim() > 1
        own_slopes = slopes[at] if of_rows else slopes  # (heads,) or (tokens, heads)
        own_kept = kept[at] if kept is not None and kept.dim() == 4 else kept
        own_live = live[at] if live is not None and live.dim() == 3 else live  # (tokens, tokens)
        given = {"alibi_slopes": own_slopes, "kept": own_kept, "live": own_live}
        return oracle.attention(*x, borders, borders_k, **given, **options)

    if q.dim() == 3:
        out, lse = row(0, q, k, v)
    else:
        out, lse = map(torch.stack, zip(*(row(at, *x) for at, x in enumerate(zip(q, k, v, strict=True))), strict=True))
    dlse = whole.dlse.to(dtype).masked_fill(lse.isinf(), 0.0)
    grads = torch.autograd.grad((out, lse), (q, k, v), (whole.dout.to(dtype), dlse))
    return Answer(out.detach(), lse.detach(), *grads)


def dropped(whole: Whole, dropout_p: float) -> Tensor:
    """What dropout leaves of every probability, (..., heads, queries, keys), from the present state of the generator.

    Queries of 0 weigh all keys alike; values that are unit vectors show the weight of each key.
    """
    *batch, tokens, heads, _ = whole.q.shape
    q, k = whole.q.new_zeros(*batch, tokens, heads, 1), whole.q.new_zeros(*batch, tokens, 1, 1)
    v = torch.eye(tokens, dtype=q.dtype)[:, None].expand(*batch, -1, 1, -1)
    out: Tensor = attention(q, k, v, dropout_p=dropout_p)
    return out.transpose(-3, -2) * tokens


def errors(found: Answer, expected: Answer) -> dict[str, float]:
    """The largest absolute error of each result; what is NaN or inf in one has to be so in the other."""
    pairs = zip(Answer._fields, found, expected, strict=True)
    return {name: distance(x, y.to(torch.float64)) for name, x, y in pairs}


def at(answer: Answer, rows: Tensor) -> Answer:
    """The part of an answer that belongs to some tokens."""
    out, lse, *grads = answer
    return Answer(out.index_select(-3, rows), lse[..., rows], *(grad.index_select(-3, rows) for grad in grads))


def assert_exact(found: Answer, expected: Answer, tolerance: float = 1e-11) -> None:
    """The answers are the same up to rounding, NaN where the expected one is NaN and nowhere else."""
    for name, error in errors(found, expected).items():
        assert error <= tolerance, f"{name} is off by {error}"


@dataclass(frozen=True)
class Family:
    """A family of functions, and where its tokens lie according to ring-flash-attention, said without our layouts."""

    prefix: str
    layout: str
    packed: bool = True

    def __str__(self) -> str:
        return self.prefix

    def rows(self, cu_seqlens: Sequence[int], size: int) -> list[Tensor]:
        """For every rank, which tokens it holds, in the order in which it holds them."""
        if self.layout == "stream":
            return list(torch.arange(cu_seqlens[-1]).view(size, -1))
        parts = [self._parts(torch.arange(start, stop), size) for start, stop in pairwise(cu_seqlens)]
        return [torch.cat([part[rank] for part in parts]) for rank in range(size)]

    def _parts(self, positions: Tensor, size: int) -> list[Tensor]:
        if self.layout == "ring":
            return list(positions.view(size, -1))
        if self.layout == "stripe":
            return [positions[rank::size] for rank in range(size)]
        chunks = positions.view(2 * size, -1)
        return [torch.cat([chunks[rank], chunks[2 * size - 1 - rank]]) for rank in range(size)]

    def between(self, comm: Communicator, cu_seqlens: Sequence[int], causal: bool, stride: int) -> list[Any]:
        """The arguments between the tensors and dropout_p."""
        if not self.packed:
            return []
        borders = torch.tensor(cu_seqlens, dtype=torch.int32)
        if self.layout == "stream":
            q, k, longest_q, longest_k, keys = ring_flash_attn.llama3_flash_attn_prepare_cu_seqlens(
                borders, causal, comm.rank, comm.size
            )
            return [q, k, longest_q, longest_k, stride, keys]
        local = borders // comm.size
        longest = int((local[1:] - local[:-1]).max())
        return [local, longest, stride] if "llama3" in self.prefix else [local, longest]

    def function(self, packing: str = "func") -> Callable[..., Any]:
        """The function by the name of ring-flash-attention; ours, where there is no such family."""
        name = f"{self.prefix}_{packing}"
        return getattr(ring_flash_attn if name in ring_flash_attn.__all__ else ringattn, name)

    def attend(self, cu_seqlens: Sequence[int], *, packing: str = "func", stride: int = 1, **tail: Any) -> Attend:
        """The function as a rank calls it, with its communicator for a group if `tail` names none."""
        function = self.function(packing)

        def attend(q: Tensor, k: Tensor, v: Tensor, comm: Communicator) -> tuple[Tensor, Tensor]:
            between = self.between(comm, cu_seqlens, tail.get("causal", False), stride)
            tensors, options = packed(packing, q, k, v), {"group": comm} | tail
            out, lse, nothing = function(*tensors, *between, return_attn_probs=True, **options)
            assert nothing is None
            return out, lse

        return attend


def packed(packing: str, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """The tensors as the function of this name takes them."""
    match packing:
        case "kvpacked_func":
            return [q, torch.stack([k, v], dim=-3)]
        case "qkvpacked_func":
            return [torch.stack([q, k, v], dim=-3)]
    return [q, k, v]


RING = Family("ring_flash_attn", "ring", packed=False)
ZIGZAG = Family("zigzag_ring_flash_attn", "zigzag", packed=False)
STRIPE = Family("stripe_flash_attn", "stripe", packed=False)
RING_VARLEN = Family("ring_flash_attn_varlen", "ring")
ZIGZAG_VARLEN = Family("zigzag_ring_flash_attn_varlen", "zigzag")
STRIPE_VARLEN = Family("stripe_flash_attn_varlen", "stripe")
LLAMA3 = Family("llama3_flash_attn_varlen", "stream")
ZIGZAG_LLAMA3 = Family("zigzag_llama3_flash_attn_varlen", "zigzag")
FAMILIES = RING, ZIGZAG, STRIPE, RING_VARLEN, ZIGZAG_VARLEN, STRIPE_VARLEN, LLAMA3, ZIGZAG_LLAMA3
PACKINGS = "func", "kvpacked_func", "qkvpacked_func"


def problem(family: Family, size: int, **options: Any) -> tuple[Whole, list[int]]:
    """Tensors for a family, with the borders of sequences that it may divide."""
    if not family.packed:
        whole = draw(12 * size, **options)
        return whole, [0, 12 * size]
    # llama 3's sequences need not divide by anything; they cross ranks, and one is empty.
    cu_seqlens = [0, 5, 5, 6 * size + 1, 8 * size] if family.layout == "stream" else [0, 2 * size, 6 * size, 8 * size]
    return draw(cu_seqlens[-1], (), **options), cu_seqlens


def solve_family(family: Family, size: int, whole: Whole, cu_seqlens: Sequence[int], **options: Any) -> Answer:
    """The answer of one family's functions on `size` threads."""
    return solve(size, family.attend(cu_seqlens, **options), whole, family.rows(cu_seqlens, size))
