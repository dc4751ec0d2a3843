"""Ranges in order, without overlaps: what ranks hold, or what is needed of it; and the parts of bands in them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from ringattn_core.plan.band import Band, trimmed
from ringattn_core.plan.tile import FAR


class Stretches:
    """Where each of the ranges begins, and where it ends."""

    def __init__(self, starts: list[int], stops: list[int]) -> None:
        self.starts, self.stops = starts, stops

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of each."""
        return zip(self.starts, self.stops, strict=True)

    def __len__(self) -> int:
        """How much is in them together."""
        return sum(self.stops) - sum(self.starts)

    @classmethod
    def of(cls, parts: Iterable[tuple[int, int]]) -> Stretches:
        """The union of (start, stop)."""
        starts, stops = list[int](), list[int]()
        end = -1
        for start, stop in sorted(parts):
            if start > end:
                starts.append(start)
                stops.append(stop)
                end = stop
            elif stop > end:
                stops[-1] = end = stop
        return cls(starts, stops)

    def gaps(self) -> Stretches:
        """All else, from 0 on and without an end."""
        starts, stops = [0, *self.stops], [*self.starts, FAR]
        if starts[:1] == stops[:1]:
            starts, stops = starts[1:], stops[1:]
        return Stretches(starts, stops)

    def without(self, other: Stretches) -> Stretches:
        """These ranges without another's."""
        gaps, parts = other.gaps(), list[tuple[int, int]]()
        for start, stop in self:
            for index in range(bisect_right(gaps.stops, start), len(gaps.starts)):
                if gaps.starts[index] >= stop:
                    break
                parts.append((max(start, gaps.starts[index]), min(stop, gaps.stops[index])))
        return Stretches.of(parts)

    def columns(self, bands: Iterable[Band]) -> Iterator[tuple[int, Band]]:
        """The parts of bands whose columns lie in each range, with its index."""
        starts, stops, count = self.starts, self.stops, len(self.starts)
        for band in bands:
            top, bottom, first, last, low, high = band
            index = bisect_right(stops, first)
            if index < count and starts[index] <= first and last <= stops[index]:
                yield index, band
                continue
            while index < count and starts[index] < last:
                part = trimmed(top, bottom, max(first, starts[index]), min(last, stops[index]), low, high)
                if part:
                    yield index, part
                index += 1

    def rows(self, bands: Iterable[Band]) -> Iterator[Band]:
        """The parts of bands whose rows lie in the ranges."""
        starts, stops, count = self.starts, self.stops, len(self.starts)
        for band in bands:
            top, bottom, first, last, low, high = band
            index = bisect_right(stops, top)
            if index < count and starts[index] <= top and bottom <= stops[index]:
                yield band
                continue
            while index < count and starts[index] < bottom:
                part = trimmed(max(top, starts[index]), min(bottom, stops[index]), first, last, low, high)
                if part:
                    yield part
                index += 1
