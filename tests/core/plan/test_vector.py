"""Vectors do to all numbers at once what Python does to each."""

from __future__ import annotations

from array import array
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from ringattn_core.plan.vector import Vector

NUMBERS = st.integers(0, 2) | st.integers(0, 1 << 58)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS) | NUMBERS.map(lambda number: (number, number)), min_size=1, max_size=9)
FACTORS = st.lists(st.integers(0, 1 << 40), min_size=1, max_size=9)


@given(PAIRS, NUMBERS)
def test_numbers_do_not_reach_into_their_neighbours(pairs: list[tuple[int, int]], number: int) -> None:
    a, b = (list(column) for column in zip(*pairs, strict=True))
    one, other = Vector.of(a), Vector.of(array("q", b))
    expected = {
        "sum": (one + other, [x + y for x, y in pairs]),
        "difference": (one - one.minimum(other), [x - min(x, y) for x, y in pairs]),
        "minimum": (one.minimum(other), [min(x, y) for x, y in pairs]),
        "positive": (one.positive(), [int(x > 0) for x in a]),
        "differs": (one.differs(other), [int(x != y) for x, y in pairs]),
        "where": (
            one.where(one.differs(other), Vector.full(number, len(a))),
            [x if x != y else number for x, y in pairs],
        ),
        "moved": (one.moved(number), [number, *a[:-1]]),
    }
    for name, (vector, numbers) in expected.items():
        assert vector.array().tolist() == numbers, name


@given(FACTORS, st.integers(0, 1 << 13), st.integers(1, 1 << 13), st.integers(0, 60))
def test_products_and_quotients(numbers: list[int], factor: int, divisor: int, bits: int) -> None:
    vector = Vector.of(numbers)
    for by in (divisor, 1 << bits):
        assert (vector * factor // by).array().tolist() == [number * factor // by for number in numbers]
    assert (vector % (1 << bits)).array().tolist() == [number % (1 << bits) for number in numbers]
    assert vector.begins().array().tolist() == [*accumulate(numbers, initial=0)][:-1]
    assert (vector == Vector.of(numbers)) and (vector != vector + Vector.full(1, len(numbers)))


def test_it_shows_its_numbers() -> None:
    assert repr(Vector.of([5, 0, 12])) == "Vector([5, 0, 12])"
    assert len(Vector.of([5, 0])) == 2
