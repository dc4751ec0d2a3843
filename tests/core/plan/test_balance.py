"""Shares of a packed stream: of all tokens, with equal work, and few documents cut."""

from __future__ import annotations

import doctest
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringattn_core.plan import balance
from ringattn_core.plan.balance import deal


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(balance) == (0, 1)


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(1, 5), st.integers(0, 9))
def test_a_deal_is_of_all_tokens_and_even(lengths: list[int], cp_size: int, first: int) -> None:
    borders = tuple(accumulate(lengths, initial=first))
    shares = deal(borders, cp_size)
    assert sorted(position for share in shares for run in share.runs for position in run) == [
        *range(first, borders[-1])
    ]
    tokens = [sum(map(len, share.runs)) for share in shares]
    assert max(tokens) - min(tokens) <= 1
    start = {position: border for border, stop in pairwise(borders) for position in range(border, stop)}
    loads = [sum(position - start[position] + 1 for run in share.runs for position in run) for share in shares]
    assert loads == [share.work for share in shares]
    assert max(loads) <= 1.01 * sum(loads) / cp_size + max(lengths, default=0), "a row's work, where rows are few"


@pytest.mark.parametrize("lengths", [(2400, 2400, 3036), (1189, 1525), (1000, 1000, 500, 20)])
def test_few_long_documents_are_halved_until_ranks_have_as_much(lengths: tuple[int, ...]) -> None:
    """The busiest of 16 had 1.3 to 1.6 times the mean, were documents lined up as they are."""
    work = [share.work for share in deal(tuple(accumulate(lengths, initial=0)), 16)]
    assert max(work) < 1.01 * sum(work) / 16


def test_a_deal_cuts_no_more_documents_than_its_pieces_have_ends() -> None:
    """Of a thousand; and none at all where whole ones are as much for each."""
    lengths = [100 + 37 * (index * index % 101) for index in range(1000)]
    shares = deal(tuple(accumulate(lengths, initial=0)), 8)
    borders = {*accumulate(lengths, initial=0)}
    cuts = {end for share in shares for run in share.runs for end in (run.start, run.stop)} - borders
    assert 0 < len(cuts) <= 2 * 7
    equal = deal(tuple(range(0, 33, 4)), 4)
    assert {(run.start % 4, len(run) % 4) for share in equal for run in share.runs} == {(0, 0)}
