"""The ways to share causal attention that `against_peers.py` compares, and how each library goes them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from random import Random
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from play_ranks import PACKINGS
from seed import load
from torch import Tensor

import ringattn
from ringattn.call import CallSpec
from ringattn_comms.communicator import SingleRank
from ringattn_core.look.auto import CANDIDATES, Routes
from ringattn_core.look.coverage import mask_area
from ringattn_core.look.shape import Shape
from ringattn_core.plan.layout import Sharding, layout_named

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Row(NamedTuple):
    """A way to share attention, and what ring-flash-attn calls it."""

    layout: str
    seed: str
    route: str = "auto"
    packings: tuple[str, ...] = ()  # none: a batch of one; several: one pass for each
    window: int = -1
    per_sequence: bool = True
    seed_layout: str = ""  # what ring-flash-attn's function wants, where that is another


PACKED = tuple(PACKINGS)
DOCUMENTS = ("documents",)
ROWS = {
    "zigzag": Row("zigzag", "zigzag_ring_flash_attn_func"),
    "stripe": Row("striped", "stripe_flash_attn_func"),
    "stripe varlen": Row("striped", "stripe_flash_attn_varlen_func", packings=("one",)),
    "ring": Row("contiguous", "ring_flash_attn_func"),
    "zigzag varlen": Row("zigzag", "zigzag_ring_flash_attn_varlen_func", packings=("one",)),
    "zigzag packings": Row("zigzag", "zigzag_ring_flash_attn_varlen_func", packings=PACKED),
    "ring varlen": Row("contiguous", "ring_flash_attn_varlen_func", packings=("one",)),
    "llama3": Row("contiguous", "llama3_flash_attn_varlen_func", "gather", packings=("one",), per_sequence=False),
    "zigzag_llama3": Row("zigzag", "llama3_flash_attn_varlen_func", "gather", packings=("one",)),
    "llama3 packings": Row(
        "contiguous", "llama3_flash_attn_varlen_func", "gather", packings=PACKED, per_sequence=False
    ),
    "zigzag documents": Row("zigzag", "zigzag_ring_flash_attn_varlen_func", packings=DOCUMENTS),
    "balanced documents": Row("balanced", "llama3_flash_attn_varlen_func", packings=DOCUMENTS),
    "llama3 documents": Row(
        "contiguous", "llama3_flash_attn_varlen_func", "gather", packings=DOCUMENTS, per_sequence=False
    ),
    "window 4096": Row("windowed(4096)", "ring_flash_attn_func", window=4095, seed_layout="contiguous"),
}


class Problem(NamedTuple):
    """A row at a size: what each rank holds of which sequences."""

    row: Row
    local: int
    heads: int
    kv_heads: int
    kernel: str
    head_groups: int

    def flop(self, *, backward: bool) -> int:
        """Of one pass over all packings and all ranks."""
        area = 0
        for packing in self.row.packings or ("one",):
            borders = self.borders(packing)
            area += mask_area(borders, borders, (self.row.window, 0))
        return Shape(self.heads, self.kv_heads, 128).flop(area, backward=backward)

    def borders(self, packing: str) -> list[int]:
        """Of the sequences of a packing, over all ranks."""
        if packing in DOCUMENTS:
            return documents(self.local * dist.get_world_size())
        return [border * self.local * dist.get_world_size() // 8192 for border in PACKINGS[packing]]

    def tensors(self, tokens: int) -> list[Tensor]:
        """q, k, v and dout, the same on all ranks for the same number of tokens."""
        torch.manual_seed(tokens)
        heads = (self.heads, self.kv_heads, self.kv_heads, self.heads)
        return [torch.randn(tokens, count, 128, device="cuda", dtype=torch.bfloat16) for count in heads]


@cache
def documents(tokens: int, seed: int = 0) -> list[int]:
    """Borders of documents as long as those of real corpora, the same each time, none longer than a quarter of a pack.

    Their lengths are log-normal with a median of 1,150 tokens, close to the frequencies in MagiAttention's benchmark
    (exps/dist_attn/benchmark/utils.py: short sequences), and multiples of 64, for ring-flash-attn shares each out.
    """
    draw, borders = Random(seed), [0]
    while borders[-1] < tokens:
        length = 64 * max(1, round(draw.lognormvariate(7.05, 1.1) / 64))
        borders.append(min(tokens, borders[-1] + min(length, tokens // 4)))
    return borders


class Part(NamedTuple):
    """One packing's share of one library: its function, its rows of the stream, and q, k, v and dout there."""

    attend: Attend
    rows: Tensor | slice
    tensors: Sequence[Tensor]


class Case(NamedTuple):
    """A library on its shares of a row's packings."""

    parts: Sequence[Part]

    def forward(self) -> None:
        with torch.no_grad():
            for part in self.parts:
                part.attend(*part.tensors[:3])

    def both(self) -> list[tuple[Tensor, ...]]:
        """out, dq, dk and dv of every packing."""
        found = []
        for part in self.parts:
            *inputs, dout = part.tensors
            out = part.attend(*inputs)
            found.append((out.detach(), *torch.autograd.grad(out, inputs, dout)))
        return found


def part(problem: Problem, attend: Attend, rows: Tensor | slice = slice(None)) -> Part:
    """A share of the stream, as a batch of one where the row has no packing."""
    whole = problem.tensors(problem.local * dist.get_world_size())
    *inputs, dout = (x[rows] if problem.row.packings else x[rows][None] for x in whole)
    return Part(attend, rows, [*(x.requires_grad_() for x in inputs), dout])


def held(problem: Problem, packing: str, layout: str, per_sequence: bool = True) -> Tensor:
    """Which tokens of the stream this rank has."""
    sharding = Sharding(layout_named(layout), tuple(problem.borders(packing)), dist.get_world_size(), per_sequence)
    return torch.tensor(sharding.positions(dist.get_rank()), device="cuda")


def one_gpu(problem: Problem) -> Case:
    """The whole sequence by itself, with the same kernel."""
    cp = ringattn.ContextParallel(SingleRank(), layout="contiguous", kernel=problem.kernel)
    return Case([part(problem, _ours(problem, packing, cp)) for packing in problem.row.packings or ("one",)])


def ours(problem: Problem, route: str) -> Case:
    layout, packings, cp = problem.row.layout, problem.row.packings or ("one",), _parallel(problem, route)
    rows = [held(problem, packing, layout, problem.row.per_sequence) for packing in packings]
    return Case([part(problem, _ours(problem, *each, cp), at) for *each, at in zip(packings, rows, strict=True)])


def _ours(problem: Problem, packing: str, cp: ringattn.ContextParallel) -> Attend:
    borders = problem.borders(packing) if problem.row.packings else None
    mask: dict[str, Any] = {"causal": True, "window_size": (problem.row.window, -1), "cu_seqlens": borders}
    return lambda q, k, v: ringattn.attention(q, k, v, cp=cp, **mask)


def _parallel(problem: Problem, route: str) -> ringattn.ContextParallel:
    return ringattn.ContextParallel(
        layout=problem.row.layout,
        route=route,
        per_sequence=problem.row.per_sequence,
        head_groups=problem.head_groups,
        kernel=problem.kernel,
    )


def taken(problem: Problem) -> list[Routes]:
    """Which routes "auto" is, for each packing."""
    cp, names, found = _parallel(problem, "auto"), {route: name for name, route in CANDIDATES.items()}, []
    for packing in problem.row.packings or ("one",):
        borders = problem.borders(packing)
        request = CallSpec(*(cp, True, (problem.row.window, -1), 0.0, 128**-0.5, 0.0, False, False, borders))
        call = request.plan(*problem.tensors(problem.local)[:3], None, None, 0)
        found.append(Routes(*(names[each.schedule.route] for each in (call.forward_pass, call.backward_pass))))
    return found


def parts(auto: Sequence[Routes], kind: str) -> list[str]:
    """The routes that "forward" has, or "both" passes; where it is one, its own line is of the same launches."""
    return sorted({name for routes in auto for name in (routes if kind == "both" else routes[:1])})


def seed(problem: Problem) -> Case:
    """ring-flash-attn 0.1.8 on the same kernel."""
    row, name = problem.row, problem.row.seed
    function = getattr(load(problem.kernel), name)
    mask = {"causal": True, "window_size": (row.window, -1)}
    if not row.packings:
        rows = held(problem, "one", row.seed_layout or row.layout)
        return Case([part(problem, lambda q, k, v: function(q, k, v, **mask), rows)])
    return Case(
        [(_gathered if "llama3" in name else _packed)(problem, packing, function, mask) for packing in row.packings]
    )


def _gathered(problem: Problem, packing: str, function: Attend, mask: dict[str, Any]) -> Part:
    """Its llama3, four kv heads at a time as in its own benchmark; it holds the stream in contiguous shares."""
    borders = torch.tensor(problem.borders(packing), dtype=torch.int32, device="cuda")
    prepare = sys.modules[function.__module__].llama3_flash_attn_prepare_cu_seqlens
    *lengths, keys = prepare(borders, True, dist.get_rank(), dist.get_world_size())
    rows = held(problem, packing, "contiguous", per_sequence=False)
    return part(problem, lambda q, k, v: function(q, k, v, *lengths, 4, keys, **mask), rows)


def _packed(problem: Problem, packing: str, function: Attend, mask: dict[str, Any]) -> Part:
    local = torch.tensor(problem.borders(packing), dtype=torch.int32, device="cuda") // dist.get_world_size()
    longest = int((local[1:] - local[:-1]).max())
    rows = held(problem, packing, problem.row.seed_layout or problem.row.layout)
    return part(problem, lambda q, k, v: function(q, k, v, local, longest, **mask), rows)


def torch_context_parallel(problem: Problem) -> Case:
    """PyTorch's own, on the same kernel, with its all-gather: it shards in the order of zigzag."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import context_parallel
    from torch.distributed.tensor.experimental._attention import set_rotate_method
    from torch.nn.attention import SDPBackend, activate_flash_attention_impl, sdpa_kernel

    if problem.kernel not in ("cudnn", "torch_flash", "flash_attn_4"):
        raise ImportError(f"context_parallel has no {problem.kernel}")
    backend = SDPBackend.CUDNN_ATTENTION if problem.kernel == "cudnn" else SDPBackend.FLASH_ATTENTION
    if problem.kernel == "flash_attn_4":
        activate_flash_attention_impl("FA4")
    set_rotate_method("allgather")
    mesh = init_device_mesh("cuda", (dist.get_world_size(),))

    # It patches scaled_dot_product_attention until it is left; what it wants to shard on entry is no business of ours.
    _ENTERED.enter_context(context_parallel(mesh, buffers=[torch.zeros(64, device="cuda")], buffer_seq_dims=[0]))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(backend):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)

    return Case([part(problem, attend, held(problem, "one", "zigzag"))])


_ENTERED = ExitStack()
