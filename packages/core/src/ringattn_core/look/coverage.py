"""Which cells of the mask the schedules of all ranks compute, counted exactly without looking at a single one.

A layout cuts the attention matrix into blocks, a span of queries against a span of keys. Within a block the mask and
every tile are bands of the same coordinates, so plain comparisons tell whether a tile lies in the mask and whether two
of them overlap; what is left out shows in the sum of the areas. A rank's blocks are compared all at once, in tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.look.table import SpanTable, first_true, piece_table, tile_table
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import FAR, Tile, Window


def mask_area(cu_seqlens_q: Sequence[int], cu_seqlens_k: Sequence[int], window: Window) -> int:
    """The live cells of the whole mask, of one head, for packed sequences with these borders."""
    area = 0
    left, right = (FAR if side < 0 else side for side in window)
    for (q_start, q_stop), (k_start, k_stop) in zip(pairwise(cu_seqlens_q), pairwise(cu_seqlens_k), strict=True):
        rows, columns = range(q_stop - q_start), range(k_stop - k_start)
        corner = len(columns) - len(rows)
        area += Tile(rows, columns, corner - left, corner + right).area
    return area


def complaint_about_cells(schedules: Sequence[Schedule], window: Window, stride: int) -> str | None:
    """What is wrong with the cells that are computed; None if every live cell of the mask is computed once.

    The layouts must hold every position once, in runs of this stride, the tiles must lie in the ranks' rows, and the
    pieces must be sound, as `verify` checks.
    """
    mask, found = _Mask(schedules[0], window, stride), 0
    for schedule in schedules:
        work = _Work(schedule, mask)
        if (tile := first_true(work.without_keys())) is not None:
            return f"{work.where(tile)}: {work.tiles.tile(tile)} has columns that no piece of the key buffer holds."
        parts = work.parts()
        dead, twice = ~mask.lives(parts), _twice(parts, parts.query * len(mask.keys.start) + parts.key)
        if (index := first_true(dead | (twice > 0))) is not None:
            tile, query, key = (int(column[index]) for column in parts[:3])
            fault = f"{twice[index]} cells are computed already"
            if dead[index]:
                fault = f"{mask.dead_cells(parts.only(index))} cells are not live in the mask"
            return (
                f"{work.where(tile)}: of {work.tiles.tile(tile)}, {fault}. The queries are of "
                f"{mask.queries.span(query)}, the keys of {mask.keys.span(key)}."
            )
        found += int(_area(*work.tiles[2:]).sum())
    area = mask_area(*mask.cu_seqlens, window)
    return None if found == area else f"Of {area} live cells, {found} are computed. {_gap(schedules, mask)}"


class _Parts(NamedTuple):
    """The shares of tiles in blocks, with live cells only as far as the band says; see `Tile`.

    Rows and columns are counted from the beginning of the block's span of queries, and of keys.
    """

    tile: Tensor
    query: Tensor  # the span, by its index in the table
    key: Tensor
    top: Tensor
    bottom: Tensor
    first: Tensor
    last: Tensor
    low: Tensor
    high: Tensor

    def only(self, which: Tensor | int) -> _Parts:
        """These parts of them."""
        return _Parts(*(column[which] for column in self))


class _Mask:
    """Which cells of any block live."""

    def __init__(self, schedule: Schedule, window: Window, stride: int) -> None:
        self.cu_seqlens = schedule.queries.cu_seqlens, schedule.keys.cu_seqlens
        self.queries = SpanTable(schedule.queries)
        self.keys = self.queries if schedule.keys == schedule.queries else SpanTable(schedule.keys)
        self._left, self._right = (FAR if side < 0 else side for side in window)
        self._stride = stride
        # Bottom-right alignment: a sequence's last query stands at its last key.
        stops_q, stops_k = map(torch.tensor, self.cu_seqlens)
        self._shift = (stops_k - stops_q)[1:]

    def band(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Low and high of blocks, for spans of one sequence."""
        stands = self.queries.position[query] + self._shift[self.queries.sequence[query]]
        apart = stands - self.keys.position[key]
        return -((self._left - apart) // self._stride), (self._right + apart) // self._stride

    def lives(self, parts: _Parts) -> Tensor:
        """Whether all cells of a part are live. A band has a cell on each of its diagonals that meets the rows."""
        low, high = self.band(parts.query, parts.key)
        same = self.queries.sequence[parts.query] == self.keys.sequence[parts.key]
        return same & (parts.low >= low) & (parts.high <= high)

    def dead_cells(self, part: _Parts) -> int:
        """How many of a part."""
        (low, high), cells = self.band(part.query, part.key), _area(*part[3:])
        if self.queries.sequence[part.query] == self.keys.sequence[part.key]:
            cells = cells - _area(*part[3:7], torch.maximum(part.low, low), torch.minimum(part.high, high))
        return int(cells)

    def areas(self, query: int, keys: Tensor) -> Tensor:
        """The live cells of the blocks of a span of queries with spans of keys of its sequence."""
        zero = torch.zeros_like(keys)
        low, high = self.band(zero + query, keys)
        return _area(zero, zero + self.queries.length[query], zero, self.keys.length[keys], low, high)


class _Lines(NamedTuple):
    """The runs of spans that lie in a buffer, in order of place."""

    span: Tensor  # by its index in the table
    place: Tensor
    stop: Tensor  # where the run ends in the buffer
    origin: Tensor  # where the span would begin

    def taken(self, start: Tensor, stop: Tensor) -> Tensor:
        """How many places from start to before stop are taken."""
        first, count = self.meeting(start, stop)
        edge, after = start.new_zeros(1), first + count
        lengths = torch.cat([edge, self.stop - self.place]).cumsum(0)
        before = (start - torch.cat([self.place, edge])[first]).clamp(min=0)
        beyond = (torch.cat([edge, self.stop])[after] - stop).clamp(min=0)
        return torch.where(count > 0, lengths[after] - lengths[first] - before - beyond, 0)

    def meeting(self, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """The index of the first run that has a place in common with a part, and the number of those that have."""
        first = torch.searchsorted(self.stop, start, right=True)
        return first, (torch.searchsorted(self.place, stop) - first).clamp(min=0)


def _lines(table: SpanTable, start: Tensor, size: Tensor, place: Tensor) -> _Lines:
    """What lies in a buffer to which rows of shards were copied: from which row on, how many, and where to."""
    order = place.argsort()
    order = order[size[order] > 0]
    start, size, place = start[order], size[order], place[order]
    before = torch.searchsorted(table.start, start, right=True) - 1
    copy, nth = _each(torch.searchsorted(table.start, start + size) - before)
    span, moved = before[copy] + nth, (place - start)[copy]
    begin = torch.maximum(table.start[span], start[copy])
    stop = torch.minimum(table.start[span] + table.length[span], (start + size)[copy])
    return _Lines(span, begin + moved, stop + moved, table.start[span] + moved)


def _each(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For every count, as often as it says: its index, and how many were before with the same."""
    index = torch.arange(len(counts)).repeat_interleave(counts)
    return index, torch.arange(len(index)) - (counts.cumsum(0) - counts)[index]


class _Work:
    """What a rank computes: its tiles, over the rows that it holds and the key buffers of all steps, side by side."""

    def __init__(self, schedule: Schedule, mask: _Mask) -> None:
        rank, self._schedule, self.tiles = schedule.cp_rank, schedule, tile_table(schedule)
        key_slices, zero = (
            piece_table([step.key_slices for step in schedule.first_group]),
            torch.zeros(1, dtype=torch.int64),
        )
        # A buffer is as wide as the furthest column of any step, there or not.
        begin = int(torch.cat([self.tiles.first, zero]).min())
        width = int(torch.cat([self.tiles.last, key_slices.offset + key_slices.size, zero]).max()) - begin
        self.shift = self.tiles.step * width - begin  # of each tile's columns
        self._rows = _lines(
            mask.queries, *(torch.tensor([n]) for n in (mask.queries.shard[rank], schedule.query_length, 0))
        )
        start = mask.keys.shard[key_slices.source] + key_slices.start
        self._columns = _lines(mask.keys, start, key_slices.size, key_slices.offset + key_slices.step * width - begin)

    def where(self, tile: int) -> str:
        """The place of a tile, in words."""
        hop = self._schedule.first_group[self.tiles.step[tile]].hop
        return f"Rank {self._schedule.cp_rank}, hop {hop}"

    def without_keys(self) -> Tensor:
        """Whether a tile has columns in which no key lies."""
        first, last = self.tiles.first + self.shift, self.tiles.last + self.shift
        return self._columns.taken(first, last) < last - first

    def parts(self) -> _Parts:
        """The tiles' shares of all blocks that they reach, those of a tile one after the other."""
        first, last = self.tiles.first + self.shift, self.tiles.last + self.shift
        row, rows = self._rows.meeting(self.tiles.top, self.tiles.bottom)
        column, columns = self._columns.meeting(first, last)
        tile, nth = _each(rows * columns)
        row, column = row[tile] + nth // columns[tile], column[tile] + nth % columns[tile]
        top, left = self._rows.origin[row], self._columns.origin[column]
        moved = self.shift[tile] + top - left  # of the band
        parts = _Parts(
            tile,
            self._rows.span[row],
            self._columns.span[column],
            torch.maximum(self.tiles.top[tile], self._rows.place[row]) - top,
            torch.minimum(self.tiles.bottom[tile], self._rows.stop[row]) - top,
            torch.maximum(first[tile], self._columns.place[column]) - left,
            torch.minimum(last[tile], self._columns.stop[column]) - left,
            self.tiles.low[tile] + moved,
            self.tiles.high[tile] + moved,
        )
        return _trimmed(parts)


def _trimmed(parts: _Parts) -> _Parts:
    """Those with a live cell, their bands from the first of their diagonals to the last."""
    low, high = _diagonals(*parts[3:])
    parts, live = parts._replace(low=low, high=high), low <= high
    return parts if live.all() else parts.only(live)


def _diagonals(
    top: Tensor, bottom: Tensor, first: Tensor, last: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """A band from its first diagonal with a cell to its last; without a cell, one that ends before it begins."""
    return torch.maximum(low, first - bottom + 1), torch.minimum(high, last - 1 - top)


def _area(top: Tensor, bottom: Tensor, first: Tensor, last: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How many cells live, as `Tile.area`; 0 of nothing."""
    low, high = _diagonals(top, bottom, first, last, low, high)

    def below(diagonal: Tensor) -> Tensor:
        rows, columns, d = bottom - top, last - first, diagonal + top - first
        return _triangle(rows + d) - _triangle(d) - _triangle(rows + d - columns) + _triangle(d - columns)

    live = (top < bottom) & (first < last) & (low <= high)
    return torch.where(live, below(high) - below(low - 1), 0)


def _triangle(n: Tensor) -> Tensor:
    n = n.clamp(min=0)
    return n * (n + 1) // 2


def _twice(parts: _Parts, blocks: Tensor) -> Tensor:
    """How many cells of a part earlier parts of its block have too."""
    twice = torch.zeros_like(blocks)
    order = blocks.argsort(stable=True)
    blocks = blocks[order]
    for distance in range(1, len(blocks)):
        same = blocks[distance:] == blocks[:-distance]
        if not same.any():
            break
        later, earlier = order[distance:][same], order[:-distance][same]
        a, b = parts.only(later)[3:], parts.only(earlier)[3:]
        common = [
            (torch.minimum if index in (1, 3, 5) else torch.maximum)(*pair)
            for index, pair in enumerate(zip(a, b, strict=True))
        ]
        twice[later] += _area(*common)
    return twice


def _gap(schedules: Sequence[Schedule], mask: _Mask) -> str:
    """Names a block of which too little is computed."""
    for schedule in schedules:
        parts = _Work(schedule, mask).parts()
        areas = _area(*parts[3:])
        for query in mask.queries.of(schedule.cp_rank):
            keys = (mask.keys.sequence == mask.queries.sequence[query]).nonzero().flatten()
            mine = parts.query == query
            found = torch.zeros_like(mask.keys.start).index_add_(0, parts.key[mine], areas[mine])
            if (index := first_true(found[keys] < mask.areas(query, keys))) is not None:
                key = int(keys[index])
                return (
                    f"Some are missing where {mask.queries.span(query)} of rank {schedule.cp_rank} meets the keys "
                    f"{mask.keys.span(key)} of rank {mask.keys.owner(key)}."
                )
    raise AssertionError("every block is complete, so their sum is the mask's area")
