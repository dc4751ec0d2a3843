"""How long a rank plans: rank 3 over 1M tokens, or 100M, causal, against the budgets.

    python benchmarks/planning.py

Then the plans of masks on eight ranks: 1,000 documents, 10,000 images in a text, a tree of 2,000 nodes. Then how long
`verify` takes to prove the plans of all ranks, once, with their pieces worked out.

Prints milliseconds, the best of several runs with empty caches, and whether the processor time is within the budget; it
exits 1 where it is not. A run that must share its core shows in the wall time only.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from time import perf_counter, process_time
from typing import NamedTuple

from ringattn_core import verify
from ringattn_core.plan import layout, lines, mask_layout, mask_planner, mask_schedule, masks, placed, planner
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.route import Route, route_named

TOKENS, DOCUMENTS = 1 << 20, 1000
ROUTES = ("ring", "waves(2)", "waves(3)", "gather", "double_ring(2)", "double_ring(4)")


class Case(NamedTuple):
    """Documents that ranks share."""

    documents: str
    layout: str
    cp_size: int
    budget: float  # milliseconds: the first layer waits for a batch's plan
    times: int = 1  # as many tokens
    routes: tuple[str, ...] = ROUTES

    @property
    def cu_seqlens(self) -> tuple[int, ...]:
        """Where the documents begin and end."""
        if self.documents == "one document":
            return 0, self.times * TOKENS
        if "equal" in self.documents:
            return tuple(TOKENS * index // DOCUMENTS for index in range(DOCUMENTS + 1))
        return 0, *sorted(random.Random(0).sample(range(1, TOKENS), DOCUMENTS - 1)), TOKENS


CASES = (
    Case("one document", "zigzag", 8, 10.0),
    Case("1,000 documents, random lengths", "zigzag", 8, 60.0),
    Case("1,000 documents, equal lengths", "zigzag", 8, 60.0),
    Case("1,000 documents, random lengths", "balanced", 8, 60.0),
    Case("1,000 documents, random lengths", "balanced", 64, 60.0),
    Case("1,000 documents, random lengths", "zigzag", 64, 50.0, routes=("ring", "waves(2)", "waves(3)", "gather")),
    Case("1,000 documents, random lengths", "zigzag", 512, 200.0, routes=("ring", "waves(2)", "gather")),
    Case("one document", "zigzag", 4096, 1000.0, times=100, routes=("ring", "waves(2)", "gather")),
)


def best(case: Case, route: Route, repeats: int) -> tuple[float, float]:
    """Wall and processor time in milliseconds, of the fastest run each."""
    walls, processors, borders = [], [], case.cu_seqlens
    for _ in range(repeats):
        for cached in (planner.plan, planner._planned, lines.shards, lines.mask, planner._alive, layout._dealt):
            cached.cache_clear()
        wall, processor = perf_counter(), process_time()
        planner.plan(layout.LAYOUTS[case.layout], route, borders, borders, 3, case.cp_size, window=(-1, 0))
        walls.append(1e3 * (perf_counter() - wall))
        processors.append(1e3 * (process_time() - processor))
    return min(walls), min(processors)


PROOFS = ("ring", "waves(2)", "gather")
RANKS, PROVEN, PROOF = 128, 100, 5.0  # documents and seconds


def prove(route: Route) -> tuple[float, float]:
    """Wall and processor seconds in which the plans of many ranks are proven, for documents of random lengths."""
    import_module("torch")  # `verify` counts with it; to import it is not part of a proof.
    borders = (0, *sorted(random.Random(0).sample(range(1, TOKENS), PROVEN - 1)), TOKENS)
    schedules = planner.plan_all(layout.zigzag, route, borders, RANKS, window=(-1, 0))
    wall, processor = perf_counter(), process_time()
    verify(schedules)
    return perf_counter() - wall, process_time() - processor


IMAGES, NODES = 10_000, 2000


def documents() -> Mask:
    """Causal documents of random lengths."""
    borders = CASES[1].cu_seqlens
    return masks.packed([stop - start for start, stop in pairwise(borders)])


def images() -> Mask:
    """A causal text with images, whose tokens see each other."""
    part = TOKENS // IMAGES
    return masks.causal(TOKENS) | masks.two_way([range(i * part, i * part + part // 2) for i in range(IMAGES)], TOKENS)


def tree() -> Mask:
    """A tree of texts, depth first, each of up to 12 levels."""
    rng, path, parents = random.Random(3), list[int](), list[int]()
    for node in range(NODES):
        path = path[: rng.randint(min(len(path), 1), min(len(path), 11))]
        parents.append(path[-1] if path else -1)
        path.append(node)
    return masks.tree(parents, [50 + node % 90 for node in range(NODES)])


class MaskCase(NamedTuple):
    """A mask that eight ranks share."""

    make: Callable[[], Mask]
    layout: str
    budget: float  # milliseconds
    per_document: bool = False


MASKS = (
    *(MaskCase(documents, layout, 60.0, per_document=True) for layout in ("zigzag", "balanced")),
    *(MaskCase(images, layout, 300.0) for layout in ("contiguous", "zigzag", "balanced")),
    *(MaskCase(tree, layout, 100.0) for layout in ("contiguous", "zigzag", "balanced")),
)
MASK_ROUTES = ("ring", "waves(2)", "gather")
_CACHES = (
    *(mask_planner.plan_mask, mask_schedule.schedule_of_mask, mask_schedule._work, mask_schedule._live_hops),
    *(placed.placed, placed.held, mask_layout.balanced_for),
    *(planner.plan, planner._planned, lines.shards, lines.mask, planner._alive, layout._dealt),
)


def best_of_mask(case: MaskCase, route: Route, repeats: int) -> tuple[float, float]:
    """Wall and processor time in milliseconds, of the fastest run each; `balanced` deals by the mask's work."""
    mask, walls, processors = case.make(), [], []
    borders = CASES[1].cu_seqlens if case.per_document else None
    for _ in range(repeats):
        for cached in _CACHES:
            cached.cache_clear()
        wall, processor = perf_counter(), process_time()
        shared = mask_layout.layout_for(layout.LAYOUTS[case.layout], mask)
        mask_planner.plan_mask(mask, shared, route, 3, 8, cu_seqlens=borders)
        walls.append(1e3 * (perf_counter() - wall))
        processors.append(1e3 * (process_time() - processor))
    return min(walls), min(processors)


def report(name: str, layout: str, count: int, route: str, times: tuple[float, float], budget: float) -> bool:
    """Print a line; is the processor time over the budget?"""
    wall, processor = times
    verdict = "FAIL" if processor > budget else "pass"
    print(f"{name:<32} {layout:<9} {count:>5} {route:<14} {wall:>7.2f} {processor:>10.2f} {budget:>7.0f}  {verdict}")
    return processor > budget


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats, over = parser.parse_args(arguments).repeats, 0
    print(f"{'milliseconds':<32} {'layout':<9} ranks {'route':<14} {'wall':>7} {'processor':>10} {'budget':>7}")
    for case in CASES:
        for name in case.routes:
            times = best(case, route_named(name), repeats)
            over += report(case.documents, case.layout, case.cp_size, name, times, case.budget)
    print(f"{'a mask, milliseconds':<32} {'layout':<9} tiles {'route':<14} {'wall':>7} {'processor':>10} {'budget':>7}")
    for mask in MASKS:
        for name in MASK_ROUTES:
            times = best_of_mask(mask, route_named(name), repeats)
            over += report(mask.make.__name__, mask.layout, len(mask.make().tiles), name, times, mask.budget)
    print(f"{'verify, seconds':<32} {'layout':<9} ranks {'route':<14} {'wall':>7} {'processor':>10} {'budget':>7}")
    for name in PROOFS:
        times = prove(route_named(name))
        over += report(f"{PROVEN} documents, random lengths", "zigzag", RANKS, name, times, PROOF)
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
