"""Ours beside ring-flash-attn and PyTorch's context_parallel: one run, interleaved, a process for each GPU.

    torchrun --standalone --nproc-per-node 2 benchmarks/against_peers.py --kernel flash_attn_4 --tokens 4096 8192

Each row is a way to share causal attention, each line a library: milliseconds of the slowest rank's GPU, forward and
forward with backward; in brackets one GPU's time for the whole sequence with the same kernel, divided by the number of
GPUs, as a share of it; TFLOP/s of each GPU, forward and backward by itself; milliseconds in which a GPU does nothing
but communicate; what the host needs to ask for a call; the memory that one forward and backward adds at its peak,
results among it (a group's window in symmetric memory, made once for all layers, is not in it: k, v and a slot for the
gradients of each other rank); how far results and gradients are from one GPU's, for some are fast and wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from exposed import exposed
from play_ranks import PACKINGS
from seed import load
from timing import interleaved_ranks
from torch import Tensor

import ringattn
from ringattn_comms.communicator import Solo
from ringattn_core.coverage import mask_area
from ringattn_core.errors import UnsupportedError
from ringattn_core.layout import Division, layout_named
from ringattn_core.shape import Shape

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Row(NamedTuple):
    """A way to share attention, and what ring-flash-attn calls it."""

    layout: str
    seed: str
    routes: tuple[str, ...] = ("auto",)
    packings: tuple[str, ...] = ()  # none: a batch of one; several: one pass for each
    window: int = -1
    per_sequence: bool = True
    seed_layout: str = ""  # what ring-flash-attn's function wants, where that is another


PACKED = tuple(PACKINGS)
ROWS = {
    "zigzag": Row("zigzag", "zigzag_ring_flash_attn_func"),
    "stripe": Row("striped", "stripe_flash_attn_func"),
    "stripe varlen": Row("striped", "stripe_flash_attn_varlen_func", packings=("one",)),
    "ring": Row("contiguous", "ring_flash_attn_func"),
    "zigzag varlen": Row("zigzag", "zigzag_ring_flash_attn_varlen_func", packings=("one",)),
    "zigzag packings": Row("zigzag", "zigzag_ring_flash_attn_varlen_func", packings=PACKED),
    "ring varlen": Row("contiguous", "ring_flash_attn_varlen_func", packings=("one",)),
    "llama3": Row("contiguous", "llama3_flash_attn_varlen_func", ("gather",), packings=("one",), per_sequence=False),
    "zigzag_llama3": Row("zigzag", "llama3_flash_attn_varlen_func", ("gather",), packings=("one",)),
    "llama3 packings": Row(
        "contiguous", "llama3_flash_attn_varlen_func", ("gather",), packings=PACKED, per_sequence=False
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
        return [border * self.local * dist.get_world_size() // 8192 for border in PACKINGS[packing]]

    def tensors(self, tokens: int) -> list[Tensor]:
        """q, k, v and dout, the same on all ranks for the same number of tokens."""
        torch.manual_seed(tokens)
        heads = (self.heads, self.kv_heads, self.kv_heads, self.heads)
        return [torch.randn(tokens, count, 128, device="cuda", dtype=torch.bfloat16) for count in heads]


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
    division = Division(layout_named(layout), tuple(problem.borders(packing)), dist.get_world_size(), per_sequence)
    return torch.tensor(division.positions(dist.get_rank()), device="cuda")


def one_gpu(problem: Problem) -> Case:
    """The whole sequence by itself, with the same kernel."""
    cp = ringattn.ContextParallel(Solo(), layout="contiguous", kernel=problem.kernel)
    return Case([part(problem, _ours(problem, packing, cp)) for packing in problem.row.packings or ("one",)])


def ours(problem: Problem, route: str) -> Case:
    layout, packings = problem.row.layout, problem.row.packings or ("one",)
    cp = ringattn.ContextParallel(
        layout=layout,
        route=route,
        per_sequence=problem.row.per_sequence,
        head_groups=problem.head_groups,
        kernel=problem.kernel,
    )
    rows = [held(problem, packing, layout, problem.row.per_sequence) for packing in packings]
    return Case([part(problem, _ours(problem, *each, cp), at) for *each, at in zip(packings, rows, strict=True)])


def _ours(problem: Problem, packing: str, cp: ringattn.ContextParallel) -> Attend:
    borders = problem.borders(packing) if problem.row.packings else None
    mask: dict[str, Any] = {"causal": True, "window_size": (problem.row.window, -1), "cu_seqlens": borders}
    return lambda q, k, v: ringattn.attention(q, k, v, cp=cp, **mask)


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
    """PyTorch's own, over cuDNN, with its all-gather: it shards in the order of zigzag."""
    if problem.row != ROWS["zigzag"] or problem.kernel != "cudnn":
        raise ImportError("PyTorch's context_parallel is run for zigzag on cuDNN only")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import context_parallel
    from torch.distributed.tensor.experimental._attention import set_rotate_method
    from torch.nn.attention import SDPBackend, sdpa_kernel

    set_rotate_method("allgather")
    mesh = init_device_mesh("cuda", (dist.get_world_size(),))

    # It patches scaled_dot_product_attention until it is left; what it wants to shard on entry is no business of ours.
    _ENTERED.enter_context(context_parallel(mesh, buffers=[torch.zeros(64, device="cuda")], buffer_seq_dims=[0]))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)

    return Case([part(problem, attend, held(problem, "one", "zigzag"))])


_ENTERED = ExitStack()


def error(problem: Problem, found: Case) -> float:
    """How far a case's results are from one GPU's: the largest of the errors of out, dq, dk and dv."""
    errors = [0.0]
    for mine, whole, each in zip(found.both(), one_gpu(problem).both(), found.parts, strict=True):
        for got, want in zip(mine, whole, strict=True):
            exact = (want if problem.row.packings else want[0])[each.rows].float()
            found_here = got if problem.row.packings else got[0]
            errors.append(((found_here.float() - exact).norm() / exact.norm()).item())
    return max(errors)


def peak(found: Case) -> float:
    """MiB that one forward and backward adds to what is allocated."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found.both()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def cases(problem: Problem, routes: Sequence[str]) -> tuple[dict[str, Case], list[str]]:
    """What can run of a row, and why the rest cannot."""
    makers: dict[str, Callable[[], Case]] = {
        "one GPU": lambda: one_gpu(problem),
        **{f"ours, {route}": lambda route=route: ours(problem, route) for route in routes},
        "ring-flash-attn": lambda: seed(problem),
        "PyTorch": lambda: torch_context_parallel(problem),
    }
    found, refused = {}, []
    for name, make in makers.items():
        try:
            made = make()
            made.both()
            found[name] = made
        except (ImportError, UnsupportedError) as why:
            refused.append(f"{name}: {why}")
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as why:
            refused.append(f"{name}: {type(why).__name__}: {str(why).splitlines()[0][:160]}")
    return found, refused


def measure(problem: Problem, name: str, routes: Sequence[str], repeats: int) -> list[str]:
    """The lines of a row."""
    found, refused = cases(problem, routes)
    size, lines = dist.get_world_size(), []
    times = interleaved_ranks(
        {f"{who} {kind}": getattr(each, kind) for who, each in found.items() for kind in ("forward", "both")}, repeats
    )
    for who, each in found.items():
        forward, both = (times[f"{who} {kind}"] for kind in ("forward", "both"))
        gpus, one = 1 if who == "one GPU" else size, (times["one GPU forward"].gpu, times["one GPU both"].gpu)
        shares = [
            f"{time:7.3f} ({whole / gpus / time * 100:5.1f})"
            for time, whole in zip((forward.gpu, both.gpu), one, strict=True)
        ]
        rates = problem.flop(backward=False) / forward.gpu, problem.flop(backward=True) / (both.gpu - forward.gpu)
        shares.append(" / ".join(f"{rate / gpus * 1e-9:4.0f}" for rate in rates))
        alone = [exposed(each.forward), exposed(each.both)] if gpus > 1 else [0.0, 0.0]
        facts = torch.tensor([*alone, peak(each), error(problem, each)], device="cuda")
        dist.all_reduce(facts, dist.ReduceOp.MAX)
        cells = (
            *(f"{problem.local:6}", f"{name:15}", f"{who:16}", *shares, f"{facts[0]:6.3f} / {facts[1]:6.3f}"),
            *(f"{forward.host:5.2f} / {both.host:5.2f}", f"{facts[2]:6.0f} MiB", f"{facts[3]:.1e}"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines + [f"  {problem.local} {name}: {why}" for why in refused]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192], help="tokens on each GPU")
    parser.add_argument("--heads", type=int, nargs=2, default=[32, 8], metavar=("Q", "KV"))
    parser.add_argument("--kernel", default="flash_attn_4")
    parser.add_argument("--routes", nargs="+", help="ours, by these instead of each row's own")
    parser.add_argument("--head-groups", type=int, default=1, help="ours: groups of kv heads that travel one by one")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    lines = []
    for local in arguments.tokens:
        for name in arguments.rows:
            row = ROWS[name]
            problem = Problem(row, local, *arguments.heads, arguments.kernel, arguments.head_groups)
            found = measure(problem, name, arguments.routes or row.routes, arguments.repeats)
            if rank == 0:
                print(*found, sep="\n", flush=True)
            lines += found
            torch.cuda.empty_cache()
    if rank == 0:
        print(
            f"\n{torch.cuda.get_device_name()}, {dist.get_world_size()} of them, PyTorch {torch.__version__}, "
            f"{arguments.kernel}, {arguments.heads[0]}:{arguments.heads[1]} heads of 128, bf16, causal"
        )
        print(
            "| tokens | row | library | forward ms (%) | with backward ms (%) | TFLOP/s | exposed ms | host ms "
            "| peak added | error |"
        )
        print(*lines, sep="\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
