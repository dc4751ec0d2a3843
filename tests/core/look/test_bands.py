"""Bands in tensors: counted, trimmed and intersected as if every cell were visited."""

from __future__ import annotations

import doctest

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringattn_core.look import bands
from ringattn_core.look.bands import Parts, area, computed_before, diagonals, trimmed

Band = tuple[int, int, int, int, int, int]
edges = st.integers(0, 7)
some = st.lists(st.tuples(edges, edges, edges, edges, st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=6)


def test_the_examples_in_docstrings() -> None:
    assert doctest.testmod(bands) == (0, 5)


def cells(band: Band) -> set[tuple[int, int]]:
    top, bottom, first, last, low, high = band
    return {(i, j) for i in range(top, bottom) for j in range(first, last) if low <= j - i <= high}


def parts_of(found: list[Band]) -> Parts:
    zero = torch.zeros(len(found), dtype=torch.int64)
    return Parts(torch.arange(len(found)), zero, zero, *map(torch.tensor, zip(*found, strict=True)))


@settings(max_examples=200, deadline=None)
@given(some)
def test_as_if_every_cell_were_visited(found: list[Band]) -> None:
    parts = parts_of(found)
    assert area(*parts[3:]).tolist() == [len(cells(band)) for band in found]
    whole = [band for band in found if band[0] < band[1] and band[2] < band[3]]
    if whole:
        left = trimmed(parts_of(whole))
        assert left.tile.tolist() == [index for index, band in enumerate(whole) if cells(band)]
        for index, low, high in zip(left.tile.tolist(), left.low.tolist(), left.high.tolist(), strict=True):
            apart = [j - i for i, j in cells(whole[index])]
            assert (low, high) == (min(apart), max(apart))
        low, high = diagonals(*left[3:])
        assert torch.equal(low, left.low) and torch.equal(high, left.high)


@settings(max_examples=200, deadline=None)
@given(some, st.data())
def test_what_earlier_parts_of_a_block_have_too(found: list[Band], data: st.DataObject) -> None:
    blocks = data.draw(st.lists(st.integers(0, 2), min_size=len(found), max_size=len(found)))
    earlier = [
        sum(len(cells(band) & cells(found[before])) for before in range(index) if blocks[before] == blocks[index])
        for index, band in enumerate(found)
    ]
    assert computed_before(parts_of(found), torch.tensor(blocks)).tolist() == earlier
