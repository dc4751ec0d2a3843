"""Layouts divide, spans say where."""

from __future__ import annotations

import ast
import doctest
import pickle
import re
from collections.abc import Sequence
from copy import deepcopy
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plans import Case, cases
from ringattn_core.plan import layout as module
from ringattn_core.plan.layout import (
    LAYOUTS,
    Layout,
    Sharding,
    Span,
    balanced,
    chunk_owners,
    contiguous,
    layout_named,
    packed,
    striped,
    windowed,
    zigzag,
)
from ringattn_core.plan.planner import plan_all
from ringattn_core.plan.route import ring
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import chunk, joined_runs


def test_contiguous_gives_each_rank_one_chunk() -> None:
    assert [contiguous(range(10), rank, 4) for rank in range(4)] == [
        (range(0, 2),),
        (range(2, 5),),
        (range(5, 7),),
        (range(7, 10),),
    ]


def test_zigzag_gives_each_rank_a_chunk_and_its_mirror_image() -> None:
    assert zigzag(range(16), 0, 4) == (range(0, 2), range(14, 16))
    assert zigzag(range(16), 3, 4) == (range(6, 8), range(8, 10))


def test_striped_deals_tokens_like_cards() -> None:
    assert striped(range(10, 20), 1, 4) == (range(11, 20, 4),)


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), windowed(7)], ids=[*LAYOUTS, "windowed(7)"])
@pytest.mark.parametrize("extent", [range(0), range(3), range(5, 6), range(7, 71), range(100, 1101)], ids=str)
@pytest.mark.parametrize("cp_size", [1, 2, 3, 8])
def test_a_layout_gives_every_position_to_one_rank(layout: Layout, extent: range, cp_size: int) -> None:
    found = [position for rank in range(cp_size) for run in layout(extent, rank, cp_size) for position in run]
    assert sorted(found) == list(extent)


@given(st.integers(0, 100), st.integers(1, 20))
def test_chunks_follow_each_other_and_differ_by_one_token_at_most(size: int, count: int) -> None:
    chunks = [chunk(range(3, 3 + size), index, count) for index in range(count)]
    assert [position for part in chunks for position in part] == list(range(3, 3 + size))
    assert max(map(len, chunks)) - min(map(len, chunks)) <= 1


def test_layout_named_takes_names_and_layouts() -> None:
    assert layout_named("zigzag") is zigzag
    assert layout_named(striped) is striped
    assert layout_named("windowed(4096)") is windowed(4096)


def test_a_window_sees_as_many_keys_from_every_rank() -> None:
    for window, length, cp_size in ((4096, 16384, 2), (1024, 1 << 16, 8), (640, 640, 5)):
        schedules = plan_all(windowed(window), ring, (0, length), cp_size, window=(window - 1, 0))
        areas = [schedule.area for schedule in schedules]
        assert max(areas) < 1.001 * min(areas)
        assert len({schedule.query_length for schedule in schedules}) == 1
    with pytest.raises(ValueError, match="takes the tokens that a query sees, 1 or more, got 0"):
        windowed(0)


def test_layout_named_tells_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"no layout 'zig-zag'; there are .* Did you mean 'zigzag'\?"):
        layout_named("zig-zag")


def test_per_sequence_every_sequence_is_divided_by_itself() -> None:
    sharding = Sharding(zigzag, (0, 8, 8, 12), 2)
    assert sharding.spans(0) == (
        Span(0, range(0, 2), 0),
        Span(0, range(6, 8), 2),
        Span(2, range(8, 9), 4),
        Span(2, range(11, 12), 5),
    )
    assert sharding.positions(1) == [2, 3, 4, 5, 9, 10]
    assert sharding.length(1) == 6


def test_a_divided_stream_is_cut_at_the_borders_of_sequences() -> None:
    sharding = Sharding(contiguous, (0, 5, 5, 6, 12), 2, per_sequence=False)
    assert sharding.spans(0) == (Span(0, range(0, 5), 0), Span(2, range(5, 6), 5))
    assert sharding.spans(1) == (Span(3, range(6, 12), 0),)


def test_stripes_of_a_stream_are_cut_between_their_tokens() -> None:
    sharding = Sharding(striped, (0, 4, 9), 3, per_sequence=False)
    assert sharding.spans(1) == (Span(0, range(1, 4, 3), 0), Span(1, range(4, 9, 3), 1))
    assert sharding.spans(2) == (Span(0, range(2, 4, 3), 0), Span(1, range(5, 9, 3), 1))


DOCUMENTS = tuple(accumulate((2048, 64, 5312, 640, 192, 1984, 7296, 320, 3008, 1408, 7744, 896, 1856), initial=0))


@pytest.mark.parametrize("cp_size", [2, 4, 8])
def test_balanced_gives_every_rank_as_many_tokens_and_as_much_work(cp_size: int) -> None:
    schedules = plan_all(balanced, ring, DOCUMENTS, cp_size, window=(-1, 0))
    areas = [schedule.area for schedule in schedules]
    assert {schedule.query_length for schedule in schedules} == {DOCUMENTS[-1] // cp_size}
    assert max(areas) < 1.002 * sum(areas) / cp_size


def test_balanced_is_even_where_one_document_is_long() -> None:
    borders = tuple(accumulate((*[100] * 300, 12000, *[100] * 235, 36), initial=0))
    areas = [schedule.area for schedule in plan_all(balanced, ring, borders, 8, window=(-1, 0))]
    assert max(areas) < 1.01 * sum(areas) / 8


def test_balanced_of_one_sequence_is_zigzag() -> None:
    for cp_rank in range(4):
        assert balanced(range(5, 69), cp_rank, 4) == tuple(joined_runs(zigzag(range(5, 69), cp_rank, 4)))
    odd = [balanced(range(100003), cp_rank, 16) for cp_rank in range(16)]
    for cp_rank, runs in enumerate(odd):
        (_, near), (far, _) = ((run.start, run.stop) for run in zigzag(range(100003), cp_rank, 16))
        assert len(runs) == 1 + (cp_rank < 15) and 6250 <= sum(map(len, runs)) <= 6251
        assert cp_rank == 15 or (abs(runs[0].stop - near) < 8 and abs(runs[1].start - far) < 8)


def test_balanced_takes_less_apart_than_zigzag_does() -> None:
    """The keys that ranks need of each other, and the pieces that sequences are in."""
    zigzags, blocks = (plan_all(layout, ring, DOCUMENTS, 4, window=(-1, 0)) for layout in (zigzag, balanced))

    def fetched(schedules: Sequence[Schedule]) -> int:
        return sum(step.fetched for schedule in schedules for step in schedule.steps if step.hop)

    def key_slices(schedules: Sequence[Schedule]) -> int:
        return sum(len(schedule.keys.spans(schedule.cp_rank)) for schedule in schedules)

    assert 3 * fetched(blocks) < fetched(zigzags) and 3 * key_slices(blocks) < key_slices(zigzags)


def test_balanced_divides_the_stream_whether_or_not_others_would_divide_its_sequences() -> None:
    for rank in range(4):
        spans = [Sharding(balanced, DOCUMENTS, 4, per_sequence).spans(rank) for per_sequence in (True, False)]
        assert spans[0] == spans[1]


def test_balanced_divides_every_row_of_a_batch_by_its_own_sequences() -> None:
    borders = (0, 3, 16, 24, 32)
    batch = [Sharding(balanced, borders, 2, batch=2).positions(rank) for rank in range(2)]
    rows = [Sharding(balanced, row, 2) for row in ((0, 3, 16), (0, 8, 16))]
    assert batch == [
        [*rows[0].positions(rank), *(16 + position for position in rows[1].positions(rank))] for rank in range(2)
    ]


SOURCES = Path(__file__).parents[3] / "packages"


def identities(source: str) -> list[str]:
    """Where code asks which layout or route it has: by `is`, or by the module that it comes from."""
    kinds = re.compile(r"\b(layout|route)$")

    def asks(node: ast.AST) -> bool:
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot):
            sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
            return "None" not in sides and any(map(kinds.search, sides))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            return bool(kinds.search(ast.unparse(node.args[0]))) and ast.unparse(node.args[1]) == "'__module__'"
        return (
            isinstance(node, ast.Attribute)
            and node.attr == "__module__"
            and bool(kinds.search(ast.unparse(node.value)))
        )

    return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if asks(node)]


def test_nothing_is_decided_by_which_layout_or_route_it_is() -> None:
    """What is special about one is said by an attribute."""
    sources = [*SOURCES.glob("*/src/**/*.py")]
    assert len(sources) > 100
    assert not {path.name: found for path in sources if (found := identities(path.read_text(encoding="utf-8")))}
    for wrong in ("self.layout is not balanced", "route is at_once", 'getattr(x.layout, "__module__", "")'):
        assert identities(wrong) == [wrong.replace('"', "'")]
    assert not identities("route is None or layout is not None or getattr(layout, '__name__')")


def test_the_examples_in_docstrings() -> None:
    assert doctest.testmod(module) == (0, 3)


@pytest.mark.parametrize("name", [*LAYOUTS, "windowed(7)"])
def test_a_built_in_layout_is_one_object(name: str) -> None:
    """Plans are looked up by it: copies and pickles are the same one."""
    layout = layout_named(name)
    assert pickle.loads(pickle.dumps(layout)) is layout and deepcopy(layout) is layout
    assert packed(layout) is layout and packed(layout).built_in and repr(layout) == name


def test_a_user_s_function_is_lifted_and_checked() -> None:
    def halves(extent: range, cp_rank: int, cp_size: int) -> tuple[range, ...]:
        return (chunk(extent, cp_size - 1 - cp_rank, cp_size),)

    assert not packed(halves).built_in and chunk_owners(halves, 2) is None
    assert packed(halves).runs((0, 3, 10), 0, 2) == (range(5, 10),)
    assert Sharding(halves, (0, 4, 10), 2).positions(0) == [2, 3, 7, 8, 9]
    assert Sharding(halves, (0, 4, 10), 2, per_sequence=False).positions(0) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("layout", "per_sequence", "spread"),
    [(zigzag, True, True), (zigzag, False, False), (striped, False, True), (balanced, True, False)],
)
def test_whether_sequences_are_spread(layout: Layout, per_sequence: bool, spread: bool) -> None:
    assert Sharding(layout, (0, 16, 32), 2, per_sequence).spreads_sequences == spread


def test_every_row_of_a_batch_is_divided() -> None:
    sharding = Sharding(contiguous, (0, 6, 12), 3, per_sequence=False, batch=2)
    assert sharding.positions(1) == [2, 3, 8, 9]


def test_the_rows_of_a_span_are_where_it_is_stored() -> None:
    assert Span(3, range(10, 20, 2), 7).rows == range(7, 12)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_a_division_holds_every_token_once_in_spans_of_one_sequence(case: Case) -> None:
    sharding = Sharding(case.layout, case.cu_seqlens_q, case.cp_size, case.per_sequence, case.batch)
    positions = []
    for rank in range(case.cp_size):
        offset = 0
        for span in sharding.spans(rank):
            start, stop = case.cu_seqlens_q[span.sequence : span.sequence + 2]
            assert span.offset == offset and start <= span.positions[0] and span.positions[-1] < stop
            offset += len(span.positions)
        assert offset == sharding.length(rank) == len(sharding.positions(rank))
        positions += sharding.positions(rank)
    assert sorted(positions) == list(range(case.cu_seqlens_q[-1]))
