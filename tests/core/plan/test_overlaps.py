"""The sweep against all pairs."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from core.plan.test_tile import cells, tiles
from ringattn_core.plan.overlaps import difference, overlaps, without
from ringattn_core.plan.tile import Tile

with_cells = tiles().filter(lambda tile: bool(tile.q and tile.k))


@settings(max_examples=300, deadline=None)
@given(st.lists(with_cells, max_size=6), st.lists(with_cells, max_size=6))
def test_the_sweep_finds_every_pair_that_shares_a_rectangle(first: list[Tile], second: list[Tile]) -> None:
    expected = [
        (a, b)
        for a, one in enumerate(first)
        for b, two in enumerate(second)
        if set(one.q) & set(two.q) and set(one.k) & set(two.k)
    ]
    assert sorted(overlaps(first, second)) == sorted(expected)


@settings(max_examples=300, deadline=None)
@given(with_cells, st.lists(with_cells, max_size=4))
def test_what_is_left_of_a_tile_is_disjoint_and_exact(tile: Tile, others: list[Tile]) -> None:
    parts = [cells(part) for part in without(tile, others)]
    assert set().union(*parts) == cells(tile) - set().union(*map(cells, others))
    assert sum(map(len, parts)) == len(set().union(*parts))
    for other in others:
        assert len(difference(tile, other)) <= 6
