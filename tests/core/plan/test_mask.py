"""The algebra of masks against sets of cells."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringattn_core.plan.mask import MASKS, Mask
from ringattn_core.plan.tile import FAR, Tile

N = 13
Cells = set[tuple[int, int]]


def cells(mask: Mask) -> Cells:
    """The live cells; no tile has a cell of another, and each is trimmed."""
    counted = [
        (i, j) for t in mask.tiles for i in t.q for j in range(max(t.k.start, i + t.low), min(t.k.stop, i + t.high + 1))
    ]
    assert len(counted) == len(set(counted))
    assert all(tile.trim() == tile for tile in mask.tiles)
    return set(counted)


@st.composite
def bands(draw: st.DrawFn) -> Mask:
    (a, b), (c, d) = (sorted(draw(st.tuples(st.integers(0, N), st.integers(0, N)))) for _ in range(2))
    low, high = (draw(st.one_of(st.none(), st.integers(-N, N))) for _ in range(2))
    return Mask((Tile(range(a, b), range(c, d), -FAR if low is None else low, FAR if high is None else high),), N, N)


@st.composite
def random_masks(draw: st.DrawFn) -> Mask:
    mask = Mask((), N, N)
    for band in draw(st.lists(bands(), max_size=6)):
        mask = draw(st.sampled_from([Mask.__or__, Mask.__or__, Mask.__sub__]))(mask, band)
    return mask


@settings(max_examples=300, deadline=None)
@given(random_masks(), random_masks())
def test_the_algebra_is_that_of_sets_of_cells(a: Mask, b: Mask) -> None:
    of_a, of_b = cells(a), cells(b)
    assert cells(a | b) == of_a | of_b
    assert cells(a & b) == of_a & of_b
    assert cells(a - b) == of_a - of_b
    assert a.same_cells(b) == (of_a == of_b)


@settings(max_examples=300, deadline=None)
@given(random_masks())
def test_what_a_mask_says_of_itself(mask: Mask) -> None:
    live = cells(mask)
    assert mask.area == len(live)
    assert mask.row_work() == [sum(i == row for i, _ in live) for row in range(N)]
    assert mask.row_work(range(3, 9)) == mask.row_work()[3:9]
    assert {(i, j) for i, row in enumerate(mask.dense()) for j, cell in enumerate(row) if cell} == live
    picture = [line.split(" ") for line in mask.draw().splitlines()[:-2]]
    assert {(i, j) for i, row in enumerate(picture) for j, sign in enumerate(row) if sign == "█"} == live


def test_masks_are_values() -> None:
    mask = Mask((Tile(range(4), range(4), high=0),), 4, 4)
    assert {mask: "same"}[Mask((Tile(range(4), range(4), high=0),), 4, 4)] == "same"
    assert repr(mask) == "<Mask of 4 x 4 tokens, 62.5 % live; tiles: 1 causal>"
    with pytest.raises(AttributeError):
        mask.num_keys = 5


def test_masks_have_a_digest_that_is_the_same_in_all_processes() -> None:
    tile = Tile(range(4), range(4), high=0)
    mask = Mask((tile,), 4, 4)
    assert mask.digest == "42dffb212f2c473d" and hash(mask) == hash(Mask((tile,), 4, 4))
    others = [Mask((tile,), 4, 5), Mask((tile,), 5, 4), Mask((), 4, 4)]
    others += [Mask((Tile(*cut, high=0),), 4, 4) for cut in ((range(1, 4), range(4)), (range(3), range(3)))]
    others += [Mask((Tile(range(4), range(4), *band),), 4, 4) for band in ((-FAR, 1), (-FAR, FAR), (-1, 0))]
    assert len({each.digest for each in (mask, *others)}) == 9


def test_a_copy_of_a_mask_is_equal_and_has_its_number() -> None:
    mask = Mask((Tile(range(4), range(4), high=0),), 4, 4)
    for copied in (pickle.loads(pickle.dumps(mask)), copy.deepcopy(mask), Mask(mask.tiles, 4, 4)):
        assert copied == mask and copied is not mask
        assert MASKS[copied.number] is copied and MASKS[mask.number] is mask


def test_a_mask_of_another_length_is_that_of_the_first_tokens() -> None:
    short, long = Mask((Tile(range(2), range(2)),), 2, 2), Mask((Tile(range(5), range(5), high=0),), 5, 5)
    assert (short | long).num_queries == (short & long).num_keys == (short - long).num_queries == 5
    assert cells(short - long) == {(0, 1)}


def test_overlapping_tiles_are_refused_with_the_place() -> None:
    with pytest.raises(ValueError, match="overlap in rows 2 to 3 and columns 1 to 2"):
        Mask((Tile(range(4), range(3)), Tile(range(2, 5), range(1, 5))), 5, 5)


def test_tiles_beyond_the_stream_are_refused() -> None:
    with pytest.raises(ValueError, match="range within 0 to 5"):
        Mask((Tile(range(6), range(3)),), 5, 5)
    with pytest.raises(ValueError, match="without a step"):
        Mask((Tile(range(0, 4, 2), range(3)),), 5, 5)
    with pytest.raises(ValueError, match="rows 0 to 4, got"):
        Mask((), 5, 5).row_work(range(3, 6))


def test_ten_thousand_images_in_a_text_are_cut_in_linear_time() -> None:
    """Each square lies on the diagonal of one causal tile, which stays whole."""
    images = Mask(tuple(Tile(range(i, i + 8), range(i, i + 8)) for i in range(0, 100_000, 10)), 100_000, 100_000)
    text = Mask((Tile(range(100_000), range(100_000), high=0),), 100_000, 100_000)
    assert len((text | images).tiles) == 10_001
    assert (text - images).area == text.area - 10_000 * 36
