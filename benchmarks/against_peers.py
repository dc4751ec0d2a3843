"""Ours beside ring-flash-attn and PyTorch's context_parallel: one run, interleaved, a process for each GPU.

    torchrun --standalone --nproc-per-node 2 benchmarks/against_peers.py --kernel flash_attn_4 --tokens 4096 8192

Each row is a way to share causal attention, each line a library. Rows of the same sequences and window are measured
together, behind one GPU's line for the whole: milliseconds of the slowest rank's GPU, forward and forward with
backward; in brackets one GPU's time for the whole sequence with the same kernel, divided by the number of GPUs, as a
share of it; TFLOP/s of each GPU, forward and backward by itself; milliseconds in which a GPU does nothing but
communicate or wait for others (rows put in order, where they travel in boxes, are not in it); what the host needs to
ask for a call; the memory that one forward and backward adds at its peak, results among it (a group's window in
symmetric memory, made once for all layers, is not in it: k, v and a slot for the gradients of each other rank); how far
results and gradients are from one GPU's, for some are fast and wrong.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from exposed import exposed
from peers import ROWS, Case, Problem, one_gpu, ours, parts, seed, taken, torch_context_parallel
from timing import Times, interleaved_ranks
from torch import Tensor

from ringattn_core.errors import UnsupportedError

KINDS = ("forward", "both")  # passes that are timed: methods of a case


def error(problem: Problem, found: Case, whole: Sequence[tuple[Tensor, ...]]) -> float:
    """How far a case's results are from one GPU's: the largest of the errors of out, dq, dk and dv."""
    errors = [0.0]
    for mine, exact, each in zip(found.both(), whole, found.parts, strict=True):
        for got, want in zip(mine, exact, strict=True):
            here = got.float() if problem.row.packings else got[0].float()
            there = (want if problem.row.packings else want[0])[each.rows].float()
            errors.append(((here - there).norm() / there.norm()).item())
    return torch.tensor(errors).max().item()  # which keeps a NaN


def peak(found: Case) -> float:
    """MiB that one forward and backward adds to what is allocated."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found.both()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def groups(names: Iterable[str]) -> list[list[str]]:
    """Rows of the same sequences and window, which share one GPU's time for the whole."""
    found: dict[tuple[tuple[str, ...], int], list[str]] = {}
    for name in names:
        found.setdefault((ROWS[name].packings, ROWS[name].window), []).append(name)
    return list(found.values())


def cases(problem: Problem, routes: Sequence[str]) -> tuple[dict[str, Case], list[str]]:
    """What can run of a row, and why the rest cannot."""
    makers: dict[str, Callable[[], Case]] = {
        **{f"ours, {route}": lambda route=route: ours(problem, route) for route in routes},
        "ring-flash-attn": lambda: seed(problem),
    }
    if problem.row == ROWS["zigzag"]:  # the only way there is through context_parallel
        makers["PyTorch"] = lambda: torch_context_parallel(problem)
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


class Measured(NamedTuple):
    """What a library needed on so many GPUs, forward and forward with backward; `exposed` in milliseconds."""

    case: Case
    gpus: int
    times: list[Times]
    exposed: list[float]


def measure(problems: Mapping[str, Problem], routes: Sequence[str], repeats: int) -> list[str]:
    """The lines of rows that share one GPU's time: its own, and behind it those of the libraries, row by row."""
    first, size = next(iter(problems.values())), dist.get_world_size()
    alone, found, refused = one_gpu(first), {}, []
    try:
        alone.both()
    except (RuntimeError, UnsupportedError) as why:
        return [f"  {first.local} {', '.join(problems)}: one GPU: {why}"]
    for name, problem in problems.items():
        ready, why = cases(problem, routes if problem.row.route == "auto" else [problem.row.route])
        found |= {(name, who): case for who, case in ready.items()}
        refused += [f"  {problem.local} {name}: {each}" for each in why]
    calls = {f"{key} {kind}": getattr(case, kind) for key, case in found.items() for kind in KINDS}
    times = interleaved_ranks({f"whole {kind}": getattr(alone, kind) for kind in KINDS} | calls, repeats)
    waits, results = exposed(calls, times), alone.both()
    whole = Measured(alone, 1, [times[f"whole {kind}"] for kind in KINDS], [0.0, 0.0])
    lines = [line(first, "", "one GPU", whole, whole, results)]
    for key, case in found.items():
        gpu_times, alone_for = ([each[f"{key} {kind}"] for kind in KINDS] for each in (times, waits))
        lines.append(line(problems[key[0]], *key, Measured(case, size, gpu_times, alone_for), whole, results))
    return lines + refused + [choice for each in problems.items() for choice in choices(*each, times, routes)]


def choices(name: str, problem: Problem, times: Mapping[str, Times], routes: Sequence[str]) -> Iterator[str]:
    """Which routes "auto" is, and how much slower than the fastest.

    Where one route is all that it is, their two lines are of the same launches, timed twice.
    """
    ran = [route for route in routes if f"{(name, f'ours, {route}')} {KINDS[0]}" in times]
    if "auto" not in ran or len(ran) == 1:
        return
    auto = taken(problem)
    for kind in KINDS:
        measured = {route: times[f"{(name, f'ours, {route}')} {kind}"].gpu for route in ran}
        best = min(measured, key=lambda route: measured[route])
        beside = {route: f"{measured['auto'] / time - 1:+.1%} beside {route}" for route, time in measured.items()}
        names = parts(auto, kind)
        second = f"; {beside[names[0]]}" if len(names) == 1 and names[0] in beside else ""
        yield f"  {name}, {kind}: auto ({', '.join(names)}) {beside[best]}, the fastest{second}"


def line(
    problem: Problem, name: str, who: str, mine: Measured, whole: Measured, results: list[tuple[Tensor, ...]]
) -> str:
    """What a library did with a row, beside what one GPU did with all of it."""
    shares = [
        f"{time.gpu:7.3f} ({one.gpu / mine.gpus / time.gpu * 100:5.1f})"
        for time, one in zip(mine.times, whole.times, strict=True)
    ]
    forward, both = mine.times
    rates = problem.flop(backward=False) / forward.gpu, problem.flop(backward=True) / (both.gpu - forward.gpu)
    shares.append(" / ".join(f"{rate / mine.gpus * 1e-9:4.0f}" for rate in rates))
    facts = torch.tensor([*mine.exposed, peak(mine.case), error(problem, mine.case, results)], device="cuda")
    dist.all_reduce(facts, dist.ReduceOp.MAX)
    cells = (
        *(f"{problem.local:6}", f"{name:16}", f"{who:16}", *shares, f"{facts[0]:6.3f} / {facts[1]:6.3f}"),
        *(f"{forward.host:5.2f} / {both.host:5.2f}", f"{facts[2]:6.0f} MiB", f"{facts[3]:.1e}"),
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192], help="tokens on each GPU")
    parser.add_argument("--heads", type=int, nargs=2, default=[32, 8], metavar=("Q", "KV"))
    parser.add_argument("--kernel", default="flash_attn_4")
    parser.add_argument("--routes", nargs="+", default=["auto"], help="ours, by these instead of auto")
    parser.add_argument("--head-groups", type=int, default=1, help="ours: groups of kv heads that travel one by one")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    lines = []
    for local in arguments.tokens:
        for names in groups(arguments.rows):
            shape = (local, *arguments.heads, arguments.kernel, arguments.head_groups)
            problems = {name: Problem(ROWS[name], *shape) for name in names}
            found = measure(problems, arguments.routes, arguments.repeats)
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
