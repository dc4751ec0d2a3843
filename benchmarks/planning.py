"""How long a rank plans: rank 3 of 8 over 1M tokens, causal, zigzag per sequence, against the budgets.

    python benchmarks/planning.py

Prints milliseconds, the best of several runs with empty caches, and whether the processor time is within the budget; it
exits 1 where it is not. A run that must share its core shows in the wall time only.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from time import perf_counter, process_time

from ringattn_core import planner
from ringattn_core.layout import zigzag
from ringattn_core.lines import shards
from ringattn_core.route import Route, route_named

TOKENS, DOCUMENTS = 1 << 20, 1000
ROUTES = ("ring", "waves(2)", "waves(3)", "gather", "double_ring(2)", "double_ring(4)")
# Milliseconds: a batch's plan must be ready long before its first layer, and one document's is planned in the layer.
BUDGETS = {"one document": 10.0, "1,000 documents, random lengths": 60.0, "1,000 documents, equal lengths": 60.0}


def borders(name: str) -> tuple[int, ...]:
    """Where the documents of a case begin and end."""
    if name == "one document":
        return 0, TOKENS
    if "equal" in name:
        return tuple(TOKENS * index // DOCUMENTS for index in range(DOCUMENTS + 1))
    return 0, *sorted(random.Random(0).sample(range(1, TOKENS), DOCUMENTS - 1)), TOKENS


def best(cu_seqlens: tuple[int, ...], route: Route, repeats: int) -> tuple[float, float]:
    """Wall and processor time in milliseconds, of the fastest run each."""
    walls, processors = [], []
    for _ in range(repeats):
        for cached in (planner.plan, planner._planned, shards, planner._alive):
            cached.cache_clear()
        wall, processor = perf_counter(), process_time()
        planner.plan(zigzag, route, cu_seqlens, cu_seqlens, 3, 8, window=(-1, 0))
        walls.append(1e3 * (perf_counter() - wall))
        processors.append(1e3 * (process_time() - processor))
    return min(walls), min(processors)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats, over = parser.parse_args(arguments).repeats, 0
    print(f"{'milliseconds':<32} {'route':<14} {'wall':>7} {'processor':>10} {'budget':>7}")
    for name, budget in BUDGETS.items():
        for route in ROUTES:
            wall, processor = best(borders(name), route_named(route), repeats)
            over += processor > budget
            verdict = "FAIL" if processor > budget else "pass"
            print(f"{name:<32} {route:<14} {wall:>7.2f} {processor:>10.2f} {budget:>7.0f}  {verdict}")
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
