"""Which cells of the mask the schedules of all ranks compute, counted exactly without visiting a single cell.

A layout cuts the attention matrix into blocks, a span of queries against a span of keys. Within a block the mask and
every tile are bands in the same coordinates. Comparisons of their numbers tell whether a tile lies in the mask and
whether two tiles overlap, and the sum of the areas whether any cell is missing. All blocks of a rank are compared at
once, in tensors.

Two ranks, 8 tokens, zigzag, causal: rank 0 has the queries 0, 1, 6 and 7, and computes these cells, on its local keys
(hop 0, one tile) and on those of rank 1 (hop 1, one tile over the last two rows):

    keys      0 1   2 3 4 5   6 7
    query 0   0 .   . . . .   . .     the queries 0 and 1 meet the keys 0 and 1 in a block with 3 live cells,
          1   0 0   . . . .   . .     and others in none
          6   0 0   1 1 1 1   0 .     the queries 6 and 7 meet the keys in blocks with 4, 8 and 3 live cells:
          7   0 0   1 1 1 1   0 0     18 in all; rank 1 has as many, and 36 = 8 * 9 / 2 are in the mask
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.look.bands import Parts, area, computed_before, trimmed
from ringattn_core.look.table import SpanTable, first_true, piece_table, tile_table
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import FAR, Tile, Window


def mask_area(cu_seqlens_q: Sequence[int], cu_seqlens_k: Sequence[int], window: Window) -> int:
    """The live cells of the whole mask, of one head, for packed sequences with these borders."""
    total = 0
    left, right = (FAR if side < 0 else side for side in window)
    for (q_start, q_stop), (k_start, k_stop) in zip(pairwise(cu_seqlens_q), pairwise(cu_seqlens_k), strict=True):
        rows, columns = range(q_stop - q_start), range(k_stop - k_start)
        corner = len(columns) - len(rows)
        total += Tile(rows, columns, corner - left, corner + right).area
    return total


def complaint_about_cells(schedules: Sequence[Schedule], window: Window, stride: int) -> str | None:
    """What is wrong with the cells that are computed; None if every live cell of the mask is computed once.

    `verify` has checked before that the layouts hold every position once, in runs of this stride, that the tiles lie in
    the ranks' rows, and that the key slices are sound.
    """
    mask, found = _Mask(schedules[0], window, stride), 0
    for schedule in schedules:
        work = _Work(schedule, mask)
        if (tile := first_true(work.without_keys())) is not None:
            return f"{work.where(tile)}: {work.tiles.tile(tile)} has columns that no piece of the key buffer holds."
        parts = work.parts()
        dead, twice = ~mask.lives(parts), computed_before(parts, parts.query * len(mask.keys.start) + parts.key)
        if (index := first_true(dead | (twice > 0))) is not None:
            tile, query, key = (int(column[index]) for column in parts[:3])
            fault = f"{twice[index]} cells are computed already"
            if dead[index]:
                fault = f"{mask.dead_cells(parts.only(index))} cells are not live in the mask"
            return (
                f"{work.where(tile)}: of {work.tiles.tile(tile)}, {fault}. The queries are of "
                f"{mask.queries.span(query)}, the keys of {mask.keys.span(key)}."
            )
        found += int(area(*work.tiles[2:]).sum())
    wanted = mask_area(*mask.cu_seqlens, window)
    return None if found == wanted else f"Of {wanted} live cells, {found} are computed. {_gap(schedules, mask)}"


class _Mask:
    """Which cells of any block are live."""

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
        """`low` and `high` of blocks, for spans of one sequence."""
        stands = self.queries.position[query] + self._shift[self.queries.sequence[query]]
        apart = stands - self.keys.position[key]
        return -((self._left - apart) // self._stride), (self._right + apart) // self._stride

    def lives(self, parts: Parts) -> Tensor:
        """For each part whether all its cells are live: parts are trimmed, so each diagonal of a band has a cell."""
        low, high = self.band(parts.query, parts.key)
        same = self.queries.sequence[parts.query] == self.keys.sequence[parts.key]
        return same & (parts.low >= low) & (parts.high <= high)

    def dead_cells(self, part: Parts) -> int:
        """How many cells of a part are not live."""
        (low, high), cells = self.band(part.query, part.key), area(*part[3:])
        if self.queries.sequence[part.query] == self.keys.sequence[part.key]:
            cells = cells - area(*part[3:7], torch.maximum(part.low, low), torch.minimum(part.high, high))
        return int(cells)

    def areas(self, query: int, keys: Tensor) -> Tensor:
        """The number of live cells in the blocks of one span of queries with spans of keys of its sequence."""
        zero = torch.zeros_like(keys)
        low, high = self.band(zero + query, keys)
        return area(zero, zero + self.queries.length[query], zero, self.keys.length[keys], low, high)


class _Lines(NamedTuple):
    """The parts of spans that lie in a buffer, in the order of their places."""

    span: Tensor  # the index of the span in its table
    place: Tensor  # where the part begins in the buffer
    stop: Tensor  # where it ends
    origin: Tensor  # where the whole span would begin

    def taken(self, start: Tensor, stop: Tensor) -> Tensor:
        """How many places from `start` to before `stop` are occupied."""
        first, count = self.meeting(start, stop)
        edge, after = start.new_zeros(1), first + count
        lengths = torch.cat([edge, self.stop - self.place]).cumsum(0)
        before = (start - torch.cat([self.place, edge])[first]).clamp(min=0)
        beyond = (torch.cat([edge, self.stop])[after] - stop).clamp(min=0)
        return torch.where(count > 0, lengths[after] - lengths[first] - before - beyond, 0)

    def meeting(self, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """The index of the first part that overlaps the places from `start` to before `stop`, and how many do."""
        first = torch.searchsorted(self.stop, start, right=True)
        return first, (torch.searchsorted(self.place, stop) - first).clamp(min=0)


def _lines(table: SpanTable, start: Tensor, size: Tensor, place: Tensor) -> _Lines:
    """What lies in a buffer into which rows were copied: `size` rows from `start` on, to `place`."""
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
    """Every index repeated by its count, and which repetition: [2, 0, 3] -> [0, 0, 2, 2, 2], [0, 1, 0, 1, 2]."""
    index = torch.arange(len(counts)).repeat_interleave(counts)
    return index, torch.arange(len(index)) - (counts.cumsum(0) - counts)[index]


class _Work:
    """What a rank computes: its tiles over its rows and over the key buffers of all steps, one after the other."""

    def __init__(self, schedule: Schedule, mask: _Mask) -> None:
        rank, self._schedule, self.tiles = schedule.cp_rank, schedule, tile_table(schedule)
        key_slices, zero = (
            piece_table([step.key_slices for step in schedule.steps]),
            torch.zeros(1, dtype=torch.int64),
        )
        # All buffers count as wide as the furthest column of any step: the place of a step is then a product.
        begin = int(torch.cat([self.tiles.first, zero]).min())
        width = int(torch.cat([self.tiles.last, key_slices.offset + key_slices.size, zero]).max()) - begin
        self.shift = self.tiles.step * width - begin  # of each tile's columns
        self._rows = _lines(
            mask.queries, *(torch.tensor([n]) for n in (mask.queries.shard[rank], schedule.query_length, 0))
        )
        start = mask.keys.shard[key_slices.source] + key_slices.start
        self._columns = _lines(mask.keys, start, key_slices.size, key_slices.offset + key_slices.step * width - begin)

    def where(self, tile: int) -> str:
        """The rank and the hop of a tile, in words."""
        hop = self._schedule.steps[self.tiles.step[tile]].hop
        return f"Rank {self._schedule.cp_rank}, hop {hop}"

    def without_keys(self) -> Tensor:
        """For each tile whether it has columns without a key."""
        first, last = self.tiles.first + self.shift, self.tiles.last + self.shift
        return self._columns.taken(first, last) < last - first

    def parts(self) -> Parts:
        """The intersections of the tiles with all blocks that they reach, those of a tile one after the other."""
        first, last = self.tiles.first + self.shift, self.tiles.last + self.shift
        row, rows = self._rows.meeting(self.tiles.top, self.tiles.bottom)
        column, columns = self._columns.meeting(first, last)
        tile, nth = _each(rows * columns)
        row, column = row[tile] + nth // columns[tile], column[tile] + nth % columns[tile]
        top, left = self._rows.origin[row], self._columns.origin[column]
        moved = self.shift[tile] + top - left  # of the band
        parts = Parts(
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
        return trimmed(parts)


def _gap(schedules: Sequence[Schedule], mask: _Mask) -> str:
    """Names a block with a live cell that is not computed."""
    for schedule in schedules:
        parts = _Work(schedule, mask).parts()
        areas = area(*parts[3:])
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
