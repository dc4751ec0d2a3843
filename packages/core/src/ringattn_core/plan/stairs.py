"""Stairs of full tiles become one band and a triangle for each step: two kernel launches for stairs of any height.

Full tiles that begin at one column overlap in columns, so that each needs a launch. Below the diagonal through their
lower right corners they are one band, and what is above is a triangle in each step; triangles share neither rows nor
columns, so one launch takes them all. Block-causal, a step of two rows:

    0 0 . . . .        0 . . . . .       . 1 . . . .
    0 0 . . . .        0 0 . . . .       . . . . . .
    0 0 0 0 . .   ->   0 0 0 . . .   +   . . . 1 . .
    0 0 0 0 . .        0 0 0 0 . .       . . . . . .
    0 0 0 0 0 0        0 0 0 0 0 .       . . . . . 1
    0 0 0 0 0 0        0 0 0 0 0 0       . . . . . .
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ringattn_core.plan.band import Band, trimmed
from ringattn_core.plan.tile import FAR

_LEAST = 3  # steps: two take two launches as they are


def without_stairs(bands: Iterable[Band]) -> list[Band]:
    """The same cells, in order of their rows."""
    found, stairs = list[Band](), dict[tuple[int, int, int], list[Band]]()
    for band in sorted(bands):
        top, bottom, first, last, low, high = band
        if low != -FAR or high != FAR:
            found.append(band)
            continue
        # A step goes on where the one before ends: its rows, the same first column, and the same diagonal.
        steps = stairs.pop((first, last - bottom, top), [])
        stairs[first, last - bottom, bottom] = [*steps, band]
    for steps in stairs.values():
        found += _divided(steps) if len(steps) >= _LEAST else steps
    return sorted(found)


def _divided(steps: list[Band]) -> Iterator[Band]:
    """The band below the corners, and the triangles above."""
    bottom, first, last = steps[-1][1:4]
    high = last - bottom
    below = trimmed(steps[0][0], bottom, first, last, -FAR, high)
    assert below, "the last row is in it"
    yield below
    for top, bottom, first, last, _, _ in steps:
        if above := trimmed(top, bottom, first, last, high + 1, FAR):
            yield above
