"""Masks that are read cell by cell have the cells that were given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringattn_core.plan import masks
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.read_mask import of_dense, of_mod
from ringattn_core.plan.tile import Tile


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 7).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), max_size=7)))
def test_any_matrix_is_read_exactly(matrix: list[list[bool]]) -> None:
    assert of_dense(matrix).dense() == [bytes(row) for row in matrix]


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(-9, 9), st.integers(0, 9))
def test_one_band_is_one_tile(num_queries: int, num_keys: int, low: int, more: int) -> None:
    band = Mask((Tile(range(num_queries), range(num_keys), low, low + more),), num_queries, num_keys)
    assert len(of_dense(band.dense()).tiles) == len(band.tiles)


@pytest.mark.parametrize("dtype", [bool, "uint8", "int64"])
def test_arrays_are_read(dtype: Any) -> None:
    """Of any whole numbers, and with strides."""
    matrix = np.tril(np.ones((5, 7), dtype))
    assert of_dense(matrix).dense() == [bytes(row.tolist()) for row in matrix]
    assert of_dense(matrix.T).dense() == [bytes(row.tolist()) for row in matrix.T]
    with pytest.raises(ValueError, match="Row 0 of the mask must have 2 entries that are 0, 1"):
        of_dense(np.ones((2, 2)))


def test_a_mask_mod_is_read_with_integers() -> None:
    document = [0] * 4 + [1] * 5
    read = of_mod(lambda _b, _h, q, k: document[q] == document[k] and q >= k, 9)
    assert read.same_cells(masks.packed([4, 5]))
    assert len(read.tiles) == 2
    assert of_mod(lambda _b, _h, _q, _k: True, 3, 4) == masks.full(3, 4)


def test_too_many_tiles_are_counted() -> None:
    lone_cells = [[i % 2 == 0 and j % 2 == 0 for j in range(8)] for i in range(8)]
    with pytest.raises(ValueError, match=r"takes 16 tiles, more than max_tiles = 10"):
        of_dense(lone_cells, max_tiles=10)
    assert of_dense(lone_cells).area == 16


def test_matrices_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="Row 1 of the mask has 1 keys where row 0 has 2"):
        of_dense([[True, False], [True]])


@pytest.mark.parametrize("entry", [2, 300, -1, 0.5, None, "x"])
def test_entries_that_say_neither_are_refused_with_their_row(entry: Any) -> None:
    with pytest.raises(ValueError, match="Row 1 of the mask must have 2 entries that are 0, 1, False or True"):
        of_dense([[1, 0], [entry, 0]])
