"""What a rank computes on a hop under a mask: which of its rows, on which columns of the key buffer."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from ringattn_core.plan.band import Band, moved, tile_of
from ringattn_core.plan.band_join import has_new_windows, joined
from ringattn_core.plan.columns import KeySlices
from ringattn_core.plan.launches import batched, only_slice
from ringattn_core.plan.placed import ByResidue, Placed, held
from ringattn_core.plan.route import RouteTable
from ringattn_core.plan.schedule import KeySlice, Launch
from ringattn_core.plan.stairs import without_stairs
from ringattn_core.plan.stretches import Stretches


class Rows(NamedTuple):
    """The rows of a rank, where local keys come again after hop 0 (see `Route`): local, early, and all others.

    Local rows see local keys only, which is what hop 0 is for; later hops compute the others. Early rows are others
    that see their local keys on hop 0 and only remote keys later.
    """

    local: Stretches
    early: Stretches
    others: Stretches


class Work:
    """What the ranks of a route compute under a mask, on every hop."""

    def __init__(self, placed: Placed, table: RouteTable, num_early_rows: int = 0) -> None:
        self._placed, self._table, self._num_early_rows = placed, table, num_early_rows
        self._rows = dict[int, Rows]()

    def rows(self, rank: int) -> Rows:
        """The rows of a rank whose local keys come again."""
        if rank not in self._rows:
            self._rows[rank] = _divided(self._placed, rank, self._num_early_rows)
        return self._rows[rank]

    def parts(self, rank: int, hop: int, keys: tuple[int, ...]) -> Iterator[Part]:
        """What a rank computes on a hop on the keys of some ranks, which are present."""
        seen, stretches = self._placed.seen(rank), self._placed.keys.stretches(keys)
        if not self._table.again[rank]:
            return _columns(seen, stretches)
        local, early, others = self.rows(rank)
        if hop == 0:
            return _columns(_in_rows(seen, Stretches.of([*local, *early])), stretches)
        found = _columns(_in_rows(seen, others), stretches)
        remote = tuple(key for key in keys if key != rank)
        if early.starts and remote:
            found = chain(found, _columns(_in_rows(seen, early), self._placed.keys.stretches(remote)))
        return found

    def step(self, rank: int, hop: int) -> tuple[tuple[KeySlice, ...] | KeySlices, tuple[Launch, ...]]:
        """The rows of shards that a rank needs on a hop, and its launches over them."""
        sources, keys = self._table.sources(rank)[hop], self._placed.keys
        parts = self.parts(rank, hop, sources)
        if len(sources) == 1:
            runs = keys.of(sources[0])
            launches = _launches(moved(part.band, 0, runs[part.residue][part.stretch].shift) for part in parts)
            return only_slice(sources[0], launches), launches
        bands = defaultdict[int, list[Band]](list)
        for part in parts:
            bands[part.residue].append(part.band)
        needed, placed, offset = list[tuple[int, int, int]](), list[Band](), 0
        for residue, each in bands.items():
            columns = Stretches.of((band[2], band[3]) for band in each)
            shifts = list[int]()
            for start, stop in columns:
                shifts.append(offset - start)
                needed.append((residue, start, stop))
                offset += stop - start
            placed += (moved(band, 0, shifts[bisect_right(columns.starts, band[2]) - 1]) for band in each)
        sharding, stride, most = keys.sharding, keys.stride, min(offset, 2 * len(needed) * len(sources))
        # Plans are kept longer than what ranks hold.
        return KeySlices(lambda: held(sharding, stride).parts(sources, needed), most), _launches(placed)

    def outgoing_rows(self, rank: int, hop: int, to: int) -> list[tuple[int, int]]:
        """The rows (start, stop) of a rank's shard that another needs on a hop."""
        runs = self._placed.keys.of(rank)
        found = Stretches.of(
            (band[2] + runs[residue][stretch].shift, band[3] + runs[residue][stretch].shift)
            for residue, stretch, band in self.parts(to, hop, (rank,))
        )
        if found.starts and self._table.count(to, hop) == 1:
            return [(found.starts[0], found.stops[-1])]  # The shard is the buffer, with what lies between.
        return list(found)

    def is_live(self, hop: int) -> bool:
        """Has any rank a live cell on a hop?"""
        # The last ranks first: under a causal mask they see the keys of most others.
        ranks = reversed(range(self._placed.keys.sharding.cp_size))
        return any(True for rank in ranks for _ in self.parts(rank, hop, self._table.sources(rank)[hop]))


class Part(NamedTuple):
    """A band whose columns lie in one stretch of a residue."""

    residue: int
    stretch: int  # its index
    band: Band


def _columns(seen: ByResidue, stretches: dict[int, Stretches]) -> Iterator[Part]:
    for residue, bands in seen.items():
        if residue in stretches:
            yield from (Part(residue, *part) for part in stretches[residue].columns(bands))


def _in_rows(seen: ByResidue, rows: Stretches) -> ByResidue:
    return {residue: list(rows.rows(bands)) for residue, bands in seen.items()}


def _divided(placed: Placed, rank: int, num_early_rows: int) -> Rows:
    """The rows of a rank. Early are the last of the longest run of others, and none if that has too few."""
    own, remote = placed.keys.stretches((rank,)), list[Band]()
    for residue, bands in placed.seen(rank).items():
        gaps = own[residue].gaps() if residue in own else Stretches.of([(0, placed.mask.num_keys)])
        remote += (band for _, band in gaps.columns(bands))
    others = Stretches.of((band[0], band[1]) for band in remote)
    local = Stretches.of([(0, placed.queries.sharding.length(rank))]).without(others)
    count = num_early_rows - len(local)
    first, last = max(others, key=lambda run: run[1] - run[0], default=(0, 0))
    early = Stretches.of([(last - count, last)] if 0 < count <= last - first else [])
    return Rows(local, early, others.without(early))


def _launches(parts: Iterable[Band]) -> tuple[Launch, ...]:
    """As few launches as there can be, of as few tiles as there can be then."""
    bands = list(parts)
    whole = joined(bands)
    launches = _batched(whole)
    # Two windows are needed to share any: fewer than three launches cannot become fewer.
    if len(launches) > 2 and has_new_windows(whole, bands):
        launches = min(launches, _batched(joined(bands, share=True)), key=len)
    return tuple(launches)


def _batched(bands: list[Band]) -> list[Launch]:
    return batched([list(map(tile_of, without_stairs(bands)))])
