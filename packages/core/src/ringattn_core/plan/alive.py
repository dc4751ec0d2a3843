"""Which hops of a route have work for any rank: all other hops are left out of every rank's plan."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

from ringattn_core.plan.join import joined_tiles
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.lines import Line, Mask, mask
from ringattn_core.plan.local_rows import split
from ringattn_core.plan.route import Route, RouteTable, route_table
from ringattn_core.plan.tile import Window


@lru_cache(16)
def alive(queries: Sharding, keys: Sharding, window: Window, route: Route) -> set[int]:
    """The hops on which any rank has a live cell, and hop 0."""
    whole, everyone = mask(queries, keys, window), route_table(route, queries.cp_size)
    count, hop_of, found = len(everyone.shifts), _Hops(everyone), {0}
    for sequence in range(len(whole.shift)):
        lines = whole.keys.of_sequence(sequence)
        longest = max((length for _, length, *_ in lines), default=0)
        # The last ranks first: under a causal mask they see the keys of most others, so few ranks have to be asked.
        for rank, query in reversed(_waiting(whole, sequence, lines, everyone)):
            first, last = whole.reach(sequence, query)
            # A run of keys that begins before the first visible key may still reach it.
            near = (first - longest * whole.stride,), (last + 1,)
            hops = hop_of[rank]
            for line in lines[slice(*(bisect_left(lines, border) for border in near))]:
                hop = hops.get(line[3])
                if hop is not None and hop not in found and joined_tiles(whole, sequence, [query], [line]):
                    found.add(hop)
            if len(found) == count:
                return found
    return found


class _Hops(dict[int, dict[int, int]]):
    """For every rank the hop on which the keys of each other rank are present."""

    def __init__(self, everyone: RouteTable) -> None:
        self._everyone = everyone

    def __missing__(self, rank: int) -> dict[int, int]:
        sources = self._everyone.sources(rank)
        self[rank] = {source: hop for hop, owners in enumerate(sources) for source in owners}
        return self[rank]


def _waiting(mask: Mask, sequence: int, keys: list[Line], everyone: RouteTable) -> list[tuple[int, Line]]:
    """The queries of a sequence that later hops compute, with their ranks."""
    queries = keys if mask.queries is mask.keys else mask.queries.of_sequence(sequence)
    if not any(everyone.again):
        return [(line[3], line) for line in queries]
    rows, own = (_by_rank(lines) for lines in (queries, keys))
    found: list[tuple[int, Line]] = []
    for rank, lines in rows.items():
        later = split(mask, sequence, lines, own.get(rank, []))[1] if everyone.again[rank] else lines
        found += [(rank, line) for line in later]
    return found


def _by_rank(lines: list[Line]) -> dict[int, list[Line]]:
    found = dict[int, list[Line]]()
    for line in lines:
        found.setdefault(line[3], []).append(line)
    return found
