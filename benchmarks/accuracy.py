"""How large errors are, by number of ranks, beside dense attention in the same dtype and beside sums of few bits.

    python benchmarks/accuracy.py
    python benchmarks/accuracy.py --device cuda --kernel flash_attn_4 --tokens 8192 --heads 8 --head-dim 128

Causal attention, the ranks being threads of one process. Each number is a relative error against float64, the norm of
the difference over the norm of the truth. "dense" is what anyone would write in plain PyTorch in that dtype; "narrow"
is the same launches, with every running sum rounded to the inputs' dtype after each block.
Exits with 1 if an error of ours on several ranks is more than 1.25 times that on one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator
from ringattn_comms.connect import connect
from ringattn_core.kernels.choose import choose
from ringattn_core.plan.layout import layout_named
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import route_named
from ringattn_core.plan.schedule import Schedule, Step
from ringattn_core.run.device_plan import device_plan
from ringattn_core.run.execute import attend, attend_backward
from ringattn_core.run.gradient import GradAccumulator
from ringattn_core.run.index import column_index, row_index
from ringattn_core.run.kernel import NO_OUT_GRADS, Block, Kernel, Options, Queries
from ringattn_core.run.merge import OutAccumulator
from ringattn_core.run.transport import KV

GROWTH = 1.25
# An error of less than float32's own rounding is not compared: lse is accurate to its last bits on any number of ranks.
FLOOR = torch.finfo(torch.float32).eps


class Results(NamedTuple):
    out: Tensor
    lse: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor


class Problem(NamedTuple):
    """The inputs, (tokens, heads, head_dim) each, and how they are attended to."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    layout: str
    route: str
    kernel: str

    def on(self, rank: int, size: int) -> tuple[Schedule, Tensor, Kernel, Options]:
        """A rank's schedule, the positions of its tokens, its kernel and its options."""
        borders, options = (0, len(self.q)), Options(self.q.shape[2] ** -0.5)
        layout, route = layout_named(self.layout), route_named(self.route)
        schedule = plan(layout, route, borders, borders, rank, size, window=(-1, 0))
        kernel = choose(self.q, self.k, self.v, schedule, options, self.kernel)
        return schedule, torch.tensor(schedule.queries.positions(rank), device=self.q.device), kernel, options


def dense(problem: Problem, dtype: torch.dtype) -> Results:
    """Plain PyTorch, in this dtype from beginning to end."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in problem[:3])
    keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(0, 1) for x in (k, v))
    dead = torch.ones(len(q), len(q), dtype=torch.bool, device=q.device).triu(1)
    scores = (q.transpose(0, 1) @ keys.mT * q.shape[2] ** -0.5).masked_fill(dead, -torch.inf)
    out = (torch.softmax(scores, dim=-1) @ values).transpose(0, 1)
    grads = torch.autograd.grad(out, (q, k, v), problem.dout.to(dtype))
    return Results(out.detach(), torch.logsumexp(scores.detach(), dim=-1), *grads)


def blank(problem: Problem) -> Results:
    """Room for the results of all tokens."""
    q, k, v, dout = problem[:4]
    lse = torch.zeros(q.shape[1], len(q), dtype=torch.float32, device=q.device)
    return Results(torch.zeros_like(dout), lse, *(torch.zeros_like(x) for x in (q, k, v)))


def ours(problem: Problem, size: int) -> Results:
    """The executor on so many ranks."""
    found = blank(problem)

    def main(comm: Communicator) -> None:
        schedule, rows, kernel, options = problem.on(comm.rank, size)
        q, k, v, dout = (x[rows] for x in problem[:4])
        result = attend(connect(comm, schedule, KV(k, v)), kernel, q, options)
        grads = attend_backward(connect(comm, schedule, KV(k, v)), kernel, dout, q, result, options)
        found.out[rows], found.lse[:, rows] = result.out, result.lse
        for total, grad in zip(found[2:], grads[:3], strict=True):
            total[rows] = grad.to(total.dtype)

    run(size, main, timeout=600)
    return found


def narrow(problem: Problem, size: int) -> Results:
    """The same launches, rank after rank, with sums in the inputs' dtype."""
    found, dtype = blank(problem), problem.q.dtype
    for rank in range(size):
        schedule, rows, kernel, options = problem.on(rank, size)
        q, dout = problem.q[rows], problem.dout[rows]
        indices = device_plan(schedule, q.device)
        partial, dq = OutAccumulator(indices, q, problem.v.shape[2]), GradAccumulator(indices, q, row_index)
        for step, columns in at_hand(schedule, q.device):
            for launch in step.launches:
                block, _ = kernel.forward(q, KV(problem.k[columns], problem.v[columns]), launch, options)
                partial.add(launch, Block(block.out.to(dtype), block.lse))
                partial.out.copy_(rounded(partial.out, dtype))
        out, lse = partial.finish(dtype)
        queries = Queries(q, out, dout, lse, (dout.float() * out.float()).sum(-1).T)
        for step, columns in at_hand(schedule, q.device):
            kv = KV(problem.k[columns], problem.v[columns])
            dk, dv = (GradAccumulator(indices, x, column_index) for x in kv)
            for launch in step.launches:
                grads = kernel.backward(queries, kv, launch, options, None, NO_OUT_GRADS)
                dq.add(launch, rounded(grads.dq, dtype))
                dq.total.copy_(rounded(dq.total, dtype))
                dk.add(launch, rounded(grads.dk, dtype))
                dv.add(launch, rounded(grads.dv, dtype))
            found.dk.index_add_(0, columns, dk.total.to(dtype))
            found.dv.index_add_(0, columns, dv.total.to(dtype))
        found.out[rows], found.lse[:, rows], found.dq[rows] = out, lse, dq.total.to(dtype)
    return found


def at_hand(schedule: Schedule, device: torch.device) -> Iterator[tuple[Step, Tensor]]:
    """Every step, with the position of the key in each column of its buffer; 0 where no needed key lies."""
    for step in schedule.steps:
        columns = torch.zeros(schedule.buffer_length(step), dtype=torch.int64)
        for piece in step.key_slices:
            stored = torch.tensor(schedule.keys.positions(piece.source))
            columns[piece.columns.start : piece.columns.stop] = stored[piece.rows.start : piece.rows.stop]
        yield step, columns.to(device)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).to(x.dtype)


def relative(found: Results, exact: Results) -> list[float]:
    return [float((x.double() - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True)]


def tracked(lines: Iterable[str]) -> Iterable[str]:
    """The same, with a progress bar where rich is installed."""
    if not find_spec("rich"):
        return lines
    from rich.progress import track

    return track(list(lines), description="measuring", transient=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of ranks, 1 first")
    parser.add_argument("--layout", default="zigzag")
    parser.add_argument("--route", default="ring")
    parser.add_argument("--kernel", default="reference")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    heads = options.heads, options.kv_heads, options.kv_heads, options.heads
    inputs = [torch.randn(options.tokens, count, options.head_dim).to(options.device, dtype) for count in heads]
    problem = Problem(*inputs, options.layout, options.route, options.kernel)
    exact = dense(problem, torch.float64)
    lines = {"dense": lambda: dense(problem, dtype)}
    lines |= {f"cp {size}": lambda size=size: ours(problem, size) for size in options.sizes}
    lines |= {f"cp {size}, narrow": lambda size=size: narrow(problem, size) for size in options.sizes}
    errors = {name: relative(lines[name](), exact) for name in tracked(lines)}

    print(
        f"{options.dtype}, {options.tokens} tokens, {options.heads}/{options.kv_heads} heads of {options.head_dim}, "
        f"{options.layout} {options.route}, {options.kernel} on {options.device}; relative error against float64"
    )
    print(" " * 14, *(f"{name:>9}" for name in Results._fields))
    for name, line in errors.items():
        print(f"{name:<14}", *(f"{error:9.2e}" for error in line))

    alone = errors[f"cp {options.sizes[0]}"]
    worse = [
        f"{name} on {size} ranks is off by {error:.2e}, more than {GROWTH} times the {first:.2e} of {options.sizes[0]}"
        for size in options.sizes[1:]
        for name, error, first in zip(Results._fields, errors[f"cp {size}"], alone, strict=True)
        if not error <= GROWTH * max(first, FLOOR)
    ]
    print(*worse, sep="\n") if worse else print(f"No error grows with the number of ranks beyond {GROWTH} times.")
    return 1 if worse else 0


if __name__ == "__main__":
    raise SystemExit(main())
