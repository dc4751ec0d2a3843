"""Where one rank's time goes, played on one GPU as in `play_ranks.py`: kernels by kind, copies, and what lies between.

python benchmarks/profile_rank.py --size 8 --rank 3 --packing mixed --route "waves(2)" --kernel flash_attn_4
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable

import torch
from exposed import spans
from play_ranks import PACKINGS, passes
from torch.profiler import ProfilerActivity, profile

from ringattn_core.plan.layout import layout_named
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import route_named

KINDS = {"copies": ("memcpy", "copy"), "sums": ("fold_rows", "sum_parts"), "memsets": ("memset", "fill")}


def kind(name: str) -> str:
    """What a kernel is for, by its name; what is none of ours is the attention's."""
    lower = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in lower for part in parts)), "attention")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--local", type=int, default=8192)
    parser.add_argument("--packing", choices=PACKINGS, default="one")
    parser.add_argument("--route", default="waves(2)")
    parser.add_argument("--layout", default="zigzag")
    parser.add_argument("--kernel", default=None)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    borders = tuple(border * arguments.local * arguments.size // 8192 for border in PACKINGS[arguments.packing])
    schedule = plan(
        layout_named(arguments.layout),
        route_named(arguments.route),
        borders,
        borders,
        arguments.rank,
        arguments.size,
        window=(-1, 0),
    )
    launches = [[len(launch.tiles) for launch in step.launches] for step in schedule.steps]
    print(f"rank {arguments.rank}: tiles of each launch, step by step: {launches}")
    for name, one_pass in zip(
        ("forward", "forward + backward"), passes(schedule, arguments.kernel, arguments.local), strict=True
    ):
        report(name, one_pass, arguments.repeats)


def report(name: str, one_pass: Callable[[], object], repeats: int) -> None:
    for _ in range(3):
        one_pass()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as trace:
        for _ in range(repeats):
            one_pass()
        torch.cuda.synchronize()
    kernels = spans(trace)
    times, counts = defaultdict(float), defaultdict(int)
    busy, until = 0.0, kernels[0][0]
    for start, end, kernel in kernels:
        times[kind(kernel)] += end - start
        counts[kind(kernel)] += 1
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    wall = until - kernels[0][0]
    print(f"\n{name}: {wall / repeats / 1e3:.3f} ms a pass, of which the GPU is idle {100 * (1 - busy / wall):.1f} %")
    for each in sorted(times, key=lambda found: -times[found]):
        print(f"  {each:10} {times[each] / repeats / 1e3:8.3f} ms in {counts[each] / repeats:5.1f} kernels")
    slow: dict[str, list[float]] = defaultdict(list)
    for start, end, kernel in kernels:
        slow[kernel[:90]].append(end - start)
    for kernel in sorted(slow, key=lambda found: -sum(slow[found]))[:8]:
        print(f"  {sum(slow[kernel]) / repeats / 1e3:8.3f} ms {len(slow[kernel]) / repeats:5.1f} x {kernel}")


if __name__ == "__main__":
    main()
