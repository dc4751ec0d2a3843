"""How few kernel launches a mask takes: tiles of one window share a launch wherever their rows and columns allow."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringattn_core.plan import masks
from ringattn_core.plan.layout import Layout, balanced, contiguous, zigzag
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_layout import layout_for
from ringattn_core.plan.mask_planner import plan_mask
from ringattn_core.plan.route import Route, gather, ring, waves

N = 8192
IMAGES = [range(start + 100, start + 300) for start in range(0, N, 512)]
# Of each mask its launches on one rank, and the most in a step of a rank of four or of eight.
COUNTS: dict[str, tuple[Mask, int, int]] = {
    "causal and images": (masks.causal(N) | masks.two_way(IMAGES, N), 2, 3),  # the image that a rank's border cuts
    "documents and images": (masks.packed([N // 4] * 4) | masks.two_way(IMAGES, N), 2, 3),
    "prompt and answers": (masks.shared_prefix(N // 4, [N // 32] * 24), 2, 2),
    "prompts and answers": (masks.shared_prefix([N // 8] * 4, [[N // 64] * 8] * 4), 2, 3),
    "prompts of any lengths": (
        masks.shared_prefix([900, 1100, 2000, 700], [[90, 200], [410] * 3, [600], [300, 20, 50]]),
        2,
        4,
    ),
    "prefix-LM": (masks.prefix(N, N // 4), 2, 3),  # 3 where the prefix ends within a rank's run
    "prefix-LM documents": (
        masks.packed([N // 4] * 4) | masks.two_way([range(start, start + N // 16) for start in range(0, N, N // 4)], N),
        2,
        3,
    ),
    "chunked": (masks.chunked(N, N // 8), 1, 1),
    "window and first": (masks.window(N, N // 8) | masks.first(N, 16), 2, 3),
    "blocks on two diagonals": (
        masks.blocks([[i - j in (0, 3) for j in range(64)] for i in range(64)], N // 64),
        2,
        3,
    ),
}


def counts(mask: Mask, layout: Layout, route: Route, cp_size: int) -> list[int]:
    """The launches of every step of every rank."""
    schedules = [plan_mask(mask, layout_for(layout, mask), route, rank, cp_size) for rank in range(cp_size)]
    return [len(step.launches) for schedule in schedules for step in schedule.steps]


@pytest.mark.parametrize("name", COUNTS)
def test_launches_of_a_mask(name: str) -> None:
    mask, alone, most = COUNTS[name]
    assert counts(mask, contiguous, ring, 1) == [alone]
    for layout, route, cp_size in product((contiguous, zigzag, balanced), (ring, waves(2), gather), (4, 8)):
        assert max(counts(mask, layout, route, cp_size)) <= most, (layout, route, cp_size)


def depths(parents: list[int]) -> list[int]:
    found = list[int]()
    for parent in parents:
        found.append(1 if parent < 0 else found[parent] + 1)
    return found


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Parents and lengths, depth first; the tile of a node of one token is full, and not causal, so they have two."""
    parents, path = list[int](), list[int]()
    for node in range(draw(st.integers(1, 30))):
        path = path[: draw(st.integers(0, len(path)))]
        parents.append(path[-1] if path else -1)
        path.append(node)
    return parents, draw(st.lists(st.integers(2, 50), min_size=len(parents), max_size=len(parents)))


@settings(max_examples=60, deadline=None)
@given(trees(), st.sampled_from([contiguous, zigzag, balanced]), st.sampled_from([ring, waves(2), gather]))
def test_a_tree_takes_a_launch_a_level(tree: tuple[list[int], list[int]], layout: Layout, route: Route) -> None:
    parents, lengths = tree
    mask, depth = masks.tree(parents, lengths), max(depths(parents))
    assert counts(mask, layout, route, 1)[0] <= depth
    assert max(counts(mask, layout, route, 4)) <= 2 * depth + 1
