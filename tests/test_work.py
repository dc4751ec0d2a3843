"""Work is counted in instructions, the same on every machine."""

from __future__ import annotations

import doctest
import sys

import pytest

import work
from work import instructions


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(work) == (0, 2)


def test_what_is_quadratic_is_seen() -> None:
    def pairs(n: int) -> int:
        return sum(i < j for i in range(n) for j in range(n))

    assert 15 < instructions(lambda: pairs(200)) / instructions(lambda: pairs(50)) < 17


def test_a_tracer_that_was_there_is_there_again() -> None:
    before = sys.gettrace()
    with pytest.raises(ZeroDivisionError):
        instructions(lambda: 1 / 0)
    assert sys.gettrace() is before
