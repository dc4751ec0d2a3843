"""`python -m ringattn.check`: is attention exact on this machine, for every layout, route and kernel?

Four ranks, which are threads of this process, compute a forward and a backward pass over one sequence and over packed
sequences with a sliding window. The results are compared with dense attention in float64. Each kernel computes in the
most exact dtype that it takes. Its limit is 1e-10 in float64, else twice the error of dense attention in that dtype.
It takes some seconds, and half a minute with all kernels of a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn.call import CallSpec
from ringattn.context_parallel import ContextParallel
from ringattn.tensors import distance
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator, SingleRank
from ringattn_core.errors import UnsupportedError
from ringattn_core.kernels.choose import KERNELS
from ringattn_core.plan.layout import LAYOUTS
from ringattn_core.plan.route import ROUTES
from ringattn_core.plan.tile import Window
from ringattn_core.run.transport import KV

_LAYOUTS = *LAYOUTS, "windowed(32)"
_ROUTES = *ROUTES, "waves(3)", "double_ring(2)"
_NAMES = "out", "lse", "dq", "dk", "dv"
_DTYPES = torch.float64, torch.float32, torch.bfloat16
_SCALE = 64**-0.5


class Problem(NamedTuple):
    """Packed sequences with a causal window."""

    cu_seqlens: tuple[int, ...]
    window: Window


PROBLEMS = Problem((0, 256), (-1, 0)), Problem((0, 40, 41, 200, 256), (31, 0))


class Column(NamedTuple):
    """A kernel on a device, in the most exact dtype that it takes there."""

    kernel: str
    device: torch.device
    dtype: torch.dtype

    @property
    def title(self) -> str:
        """What stands over its column of the table."""
        return f"{self.kernel} {self.device.type} {str(self.dtype).removeprefix('torch.')}"

    @property
    def refusal(self) -> str:
        """Why the kernel computes nothing there; empty if it does."""
        x = torch.zeros(4, 2, 64, device=self.device, dtype=self.dtype)
        try:
            _spec(SingleRank(), kernel=self.kernel).prepare(x, x, x)
        except UnsupportedError as error:
            return str(error)
        return ""


class Finding(NamedTuple):
    """The largest error of a combination as a share of its limit, and a sentence about it."""

    error: float
    about: str

    @property
    def exact(self) -> bool:
        """Is every result within its limit?"""
        return self.error <= 1.0


def main(
    ranks: int = 4, layouts: Sequence[str] = _LAYOUTS, routes: Sequence[str] = _ROUTES, kernels: Sequence[str] = ()
) -> int:
    """Print a row for each layout and route, and a verdict; 0 if everything is exact, else 1."""
    columns = [column for column in _columns() if not kernels or column.kernel in kernels]
    problems = {column: [Solved(problem, column) for problem in PROBLEMS] for column in columns}
    widths = [max(len(column.title), 9) for column in columns]
    print(f"Attention on {ranks} ranks, forward and backward, against dense attention in float64.")
    print(
        "The largest error as a share of its limit; more than 1 is wrong, and marked !. - is refused by the kernel.\n"
    )
    print(
        f"{'layout':<14}{'route':<16}",
        *(f"{column.title:>{width}}  " for column, width in zip(columns, widths, strict=True)),
    )
    wrong, count = list[str](), 0
    for layout, route in product(layouts, routes):
        print(f"{layout:<14}{route:<16}", end="", flush=True)
        for column, width in zip(columns, widths, strict=True):
            found = compare(ranks, layout, route, problems[column])
            count += found is not None
            print(f" {_cell(found):>{width + 1}} ", end="", flush=True)
            if found is not None and not found.exact:
                wrong.append(f"  {layout}, {route}, {column.title}: {found.about}")
        print()
    verdict = f"{len(wrong)} of {count} combinations are WRONG:" if wrong else f"All {count} combinations are exact."
    verdict = verdict if count else "Every kernel refuses all of this: nothing was checked."
    print("\n".join(["", verdict, *wrong]))
    return 1 if wrong or not count else 0


def _cell(found: Finding | None) -> str:
    """A number, and a sign that tells 1.004, which is wrong, from 0.996: both are written 1."""
    return "- " if found is None else f"{found.error:.2g}{' ' if found.exact else '!'}"


def _columns() -> Iterator[Column]:
    """Every kernel that computes anything on this machine."""
    for device in [torch.device("cpu"), *([torch.device("cuda", 0)] if torch.cuda.is_available() else [])]:
        for kernel in KERNELS:
            for dtype in _DTYPES:
                if not (column := Column(kernel, device, dtype)).refusal:
                    yield column
                    break


def _spec(comm: Communicator, window: Window = (-1, 0), **options: object) -> CallSpec:
    cp = ContextParallel(comm, **options)  # type: ignore[arg-type]
    return CallSpec(cp, True, window, 0.0, _SCALE, 0.0, False, False, needs_gradients=True)


class Solved:
    """A problem with its inputs, what dense attention in float64 says of them, and how far a result may be off."""

    def __init__(self, problem: Problem, column: Column) -> None:
        generator = torch.Generator().manual_seed(0)
        self.problem, self.kernel = problem, column.kernel
        self.inputs = [
            torch.randn(problem.cu_seqlens[-1], heads, 64, generator=generator).to(column.device, column.dtype)
            for heads in (4, 2, 2, 4)  # q, k, v, dout
        ]
        self.expected = _dense(problem, [x.double() for x in self.inputs])
        fair = self.expected if column.dtype == torch.float64 else _dense(problem, self.inputs)
        errors = (distance(x, y) for x, y in zip(fair, self.expected, strict=True))
        floor = 1e-10 if column.dtype == torch.float64 else 1e-5
        self.limits = [max(2 * error, floor) for error in errors]


def _dense(problem: Problem, inputs: Sequence[Tensor]) -> list[Tensor]:
    """out, lse and the gradients of q, k and v, by plain PyTorch."""
    q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
    position = torch.arange(len(q), device=q.device)
    live = torch.zeros(len(q), len(q), dtype=torch.bool, device=q.device)
    for start, stop in pairwise(problem.cu_seqlens):
        live[start:stop, start:stop] = True
    before = position[:, None] - position
    live &= before >= 0
    if problem.window[0] >= 0:
        live &= before <= problem.window[0]
    scores = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(2, dim=1)) * _SCALE
    scores = scores.masked_fill(~live, -torch.inf)
    out = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v.repeat_interleave(2, dim=1))
    return [out.detach(), scores.detach().logsumexp(-1), *torch.autograd.grad(out, (q, k, v), inputs[3])]


def compare(ranks: int, layout: str, route: str, problems: Sequence[Solved]) -> Finding | None:
    """The worst result of a combination; None where the kernel refuses it."""
    findings = []
    for solved in problems:
        try:
            results = _attend(ranks, layout, route, solved)
        except UnsupportedError:
            continue
        except Exception as raised:  # noqa: BLE001 - whatever goes wrong is what the table is to show
            return Finding(float("inf"), f"{type(raised).__name__}: {raised}")
        for name, x, expected, limit in zip(_NAMES, results, solved.expected, solved.limits, strict=True):
            error = distance(x, expected)
            findings.append(Finding(error / limit, f"{name} is off by {error:.1e}, more than {limit:.1e}"))
    return max(findings, default=None)


def _attend(ranks: int, layout: str, route: str, solved: Solved) -> list[Tensor]:
    """What the ranks compute, put together in the order of the stream; NaN where no rank holds a token."""
    tokens = solved.problem.cu_seqlens[-1]

    def rank(comm: Communicator) -> tuple[Tensor, list[Tensor]]:
        options = {"layout": layout, "route": route, "kernel": solved.kernel, "cu_seqlens": solved.problem.cu_seqlens}
        spec = _spec(comm, solved.problem.window, **options)
        q, k, v, dout = spec.cp.shard(*solved.inputs, dim=0)
        call = spec.plan(q, k, v, None, None, 0)
        # Not by autograd: on a GPU it runs the backward passes of all threads on one, where each waits for the next.
        result, number = call.forward(q, k, v, None)
        grads = call.backward(number, dout, None, q, KV(k, v), result, None)
        return spec.cp.shard(torch.arange(tokens), dim=0), [result.out, result.lse.T, *grads[:3]]

    shares = run(ranks, rank)
    whole = [x.new_full((tokens, *x.shape[1:]), torch.nan) for x in shares[0][1]]
    for index, results in shares:
        for x, part in zip(whole, results, strict=True):
            x[index.to(x.device)] = part
    out, lse, *grads = whole
    return [out, lse.T, *grads]


if __name__ == "__main__":
    sys.exit(main())
