"""Bands that together are one band become one: fewer tiles in a launch, and fewer launches."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ringattn_core.plan.band import Band, tile_of, trimmed
from ringattn_core.plan.tile import FAR, Window

_COMMON = (-1, -1), (-1, 0), (0, -1)  # full, causal, and causal with rows for columns


def joined(bands: Sequence[Band], *, share: bool = False) -> list[Band]:
    """The same cells in fewer bands, in order of their rows: those that together are one band are joined.

    0 0 | .          0 0 .
    0 0 | 0    ->    0 0 0    a full tile and a causal one are one causal tile

    With `share`, only where the window of the whole is a common one or that of a part, so that it can share a launch:
    a prompt and all its answers on the prompt's keys are a band whose window no other prompt has, but in a causal and a
    full tile those of all prompts take two launches.
    """
    found = list(bands)
    while True:
        count = len(found)
        found = _stacked(_turned(_stacked(_turned(found), share)), share)
        if len(found) == count and len(found := _merged(found, share)) == count:
            return sorted(found)


def has_new_windows(bands: Sequence[Band], before: Sequence[Band]) -> bool:
    """Do joined bands have windows that are neither common nor those of the bands before?"""
    return not {*_COMMON, *map(_window, before)}.issuperset(map(_window, bands))


def _merged(bands: list[Band], share: bool) -> list[Band]:
    """Join two bands if one begins, in each of their rows, where the other ends on its diagonal.

    0 1          0 0
    0 0    ->    0 0    a causal tile and what is above its diagonal are a full tile
    """
    starts = {first - top - 1 if low == -FAR else low - 1 for top, _, first, _, low, _ in bands}
    below = defaultdict[int, list[Band]](list)  # by the diagonal on which they end; a border that stays has its first
    for band in sorted(bands):
        end = band[3] - 1 - band[0] if band[5] == FAR else band[5]
        if end in starts:
            below[end].append(band)
    if not below:
        return bands
    found = dict.fromkeys(bands)
    for band in bands:
        near = below.get(band[2] - band[0] - 1 if band[4] == -FAR else band[4] - 1, [])
        index = bisect_right(near, band)
        for other in near[max(index - 1, 0) : index + 1]:
            if other is band or other not in found or band not in found:
                continue
            whole = _whole(other, band)
            if whole and not (share and not _shares(whole, other, band)):
                del found[band], found[other]
                found[whole] = None
    return list(found)


def _whole(a: Band, b: Band) -> Band | None:
    """The band from the left border of a to the right one of b, if it has their cells and no others."""
    rows, columns = ((min(a[i], b[i]), max(a[i + 1], b[i + 1])) for i in (0, 2))
    whole = trimmed(*rows, *columns, a[4], b[5])
    if whole is None or _area(whole) != _area(a) + _area(b):
        return None
    inside = all(trimmed(*part[:4], max(part[4], a[4]), min(part[5], b[5])) == part for part in (a, b))
    return whole if inside else None


def _shares(whole: Band, a: Band, b: Band) -> bool:
    """Is the window of a union a common one, or that of a part?"""
    window = _window(whole)
    return window in _COMMON or window in (_window(a), _window(b))


def _window(band: Band) -> Window:
    """As `Tile.window`."""
    _, bottom, _, last, low, high = band
    return -1 if low == -FAR else last - bottom - low, -1 if high == FAR else high - last + bottom


def _area(band: Band) -> int:
    return tile_of(band).area


def _turned(bands: Iterable[Band]) -> list[Band]:
    """Rows for columns."""
    return [(first, last, top, bottom, -high, -low) for top, bottom, first, last, low, high in bands]


def _stacked(bands: list[Band], share: bool) -> list[Band]:
    """Join bands that follow each other in rows."""
    if {band[0] for band in bands}.isdisjoint(band[1] for band in bands):
        return bands
    found = dict.fromkeys(list[Band]())
    ends = dict[tuple[int, int], Band]()  # by the row after the last one, and where that begins
    for band in sorted(bands):
        whole = band
        for begin in (band[2], band[2] - 1):  # From row to row a border stays or moves by one.
            before = ends.get((band[0], begin))
            union = _union(before, band) if before else None
            if before and union and not (share and not _shares(union, before, band)):
                del found[before], ends[band[0], begin]
                whole = union
                break
        found[whole] = None
        ends[whole[1], max(whole[2], whole[1] - 1 + whole[4])] = whole
    return list(found)


def _union(a: Band, b: Band) -> Band | None:
    """The one band that has the cells of both and no others, if there is one; b begins below the last row of a.

    The left border of a band stays and then moves, the right one moves and then stays. So a border is known by where it
    is in the first and in the last row, and two are the same if they agree in both.
    """
    top, middle, first, a_last, a_low, a_high = a
    _, bottom, b_first, last, b_low, b_high = b
    end = max(b_first, bottom - 1 + b_low)  # where the last row begins
    low = -FAR if end == first else end - (bottom - 1)
    stop = min(a_last, top + 1 + a_high)  # where the first row ends
    high = FAR if stop == last else stop - (top + 1)
    begins = (
        top + low <= first
        and max(first, middle - 1 + low) == max(first, middle - 1 + a_low)
        and max(first, middle + low) == b_first
    )
    ends = (
        bottom + high >= last
        and min(last, middle + high) == a_last
        and min(last, middle + 1 + high) == min(last, middle + 1 + b_high)
    )
    return (top, bottom, first, last, low, high) if begins and ends else None
