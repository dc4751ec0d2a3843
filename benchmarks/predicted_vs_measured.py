"""What `simulate` predicts beside what is measured, for every route, and which route `auto` takes.

    torchrun --standalone --nproc-per-node 2 benchmarks/predicted_vs_measured.py --tokens 4096 8192 32768

Each GPU holds so many tokens of one causal sequence, zigzag; the slowest rank counts, medians of interleaved runs.
Exits with 1 if a prediction is off by more than a tenth, or if `auto` is more than 2 % slower than the fastest route.
Where it is one of the routes, their two lines are of the same launches, timed twice, and the mean of both counts.
"""

from __future__ import annotations

import argparse
import os
import sys

import torch
import torch.distributed as dist
from peers import Problem, Row, one_gpu, ours, parts, taken
from timing import interleaved_ranks

from ringattn_core.kernels.choose import kernel_named
from ringattn_core.look.auto import CANDIDATES, Routes
from ringattn_core.look.machine import machine_of
from ringattn_core.look.shape import Shape
from ringattn_core.look.simulate import predict
from ringattn_core.plan.layout import zigzag
from ringattn_core.plan.local_rows import default_early_rows
from ringattn_core.plan.planner import plan_all

OFF, SLOWER = 0.10, 0.02
MASK = (-1, 0)


def rows(tokens: int, kernel: str, heads: list[int], repeats: int) -> tuple[list[str], bool]:
    """The lines for so many tokens on each GPU, and whether all of them are as promised."""
    size, problem = dist.get_world_size(), Problem(Row("zigzag", ""), tokens, *heads, kernel, head_groups=1)
    names = [name for name in CANDIDATES if size > 2 or name != "waves(3)"]
    cases = {name: ours(problem, name) for name in ("auto", *names)} | {"one GPU": one_gpu(problem)}
    kinds = ("forward", "both")
    times = interleaved_ranks(
        {f"{name} {kind}": getattr(case, kind) for name, case in cases.items() for kind in kinds}, repeats
    )
    machine = machine_of(torch.cuda.get_device_name()).running(kernel_named(kernel).speed or (1.0, 1.0))
    shape = Shape(*heads, 128, grad_itemsize=2)
    (auto,) = taken(problem)
    lines, good = [], True
    for name in cases:
        routes = auto if name == "auto" else Routes(*["ring" if name == "one GPU" else name] * 2)
        forward, backward = (
            plan_all(
                *(zigzag, CANDIDATES[route], (0, tokens * size), 1 if name == "one GPU" else size),
                window=MASK,
                num_early_rows=num_early_rows,
            )
            for route, num_early_rows in zip(routes, (default_early_rows(tokens), 0), strict=True)
        )
        cells = []
        for kind in kinds:
            seconds = predict(forward, shape, machine, backward=backward if kind == "both" else (), one_sided=True).time
            measured = times[f"{name} {kind}"].gpu
            good &= abs(seconds * 1e3 / measured - 1) <= OFF
            cells.append(f"{measured:8.3f} ms, predicted {seconds * 1e3:8.3f} ({seconds * 1e3 / measured - 1:+.1%})")
        lines.append(f"{tokens:6} {name:9} forward {cells[0]}; both {cells[1]}")
    for kind in kinds:
        same = parts([auto], kind)
        twins = ["auto", *(same if len(same) == 1 else ())]
        mean = sum(times[f"{name} {kind}"].gpu for name in twins) / len(twins)
        slower = mean / min(times[f"{name} {kind}"].gpu for name in names) - 1
        good &= slower <= SLOWER
        lines.append(
            f"{tokens:6} auto is {auto.forward}, then {auto.backward}: {kind} {slower:+.1%} beside the fastest"
        )
    return lines, good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 32768], help="tokens on each GPU")
    parser.add_argument("--heads", type=int, nargs=2, default=[32, 8], metavar=("Q", "KV"))
    parser.add_argument("--kernel", default="flash_attn_4")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    found = [rows(tokens, arguments.kernel, arguments.heads, arguments.repeats) for tokens in arguments.tokens]
    if rank == 0:
        print(f"{torch.cuda.get_device_name()}, {dist.get_world_size()} of them, {arguments.kernel}")
        print(*(line for lines, _ in found for line in lines), sep="\n")
    dist.destroy_process_group()
    return 0 if all(good for _, good in found) else 1


if __name__ == "__main__":
    sys.exit(main())
