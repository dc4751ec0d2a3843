"""Which cells of the mask the schedules of all ranks compute, counted exactly without looking at a single one.

A layout cuts the attention matrix into blocks, a span of queries against a span of keys. Within a block the mask and
every tile are bands of the same coordinates, so areas tell whether a tile lies in the mask and whether two of them
overlap; what is left out shows in the sum.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from ringattn_core.layout import Span
from ringattn_core.schedule import Piece, Schedule
from ringattn_core.tile import FAR, Tile, Window


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

    The layouts must hold every position once, in runs of this stride, and the pieces must be sound, as `verify` checks.
    """
    mask = _Mask(schedules[0], window, stride)
    queries = {schedule.cp_rank: schedule.queries.spans(schedule.cp_rank) for schedule in schedules}
    keys = {schedule.cp_rank: schedule.keys.spans(schedule.cp_rank) for schedule in schedules}
    blocks: dict[_Block, list[Tile]] = {}
    for schedule in schedules:
        rank = schedule.cp_rank
        rows = _lines([Piece(rank, range(schedule.query_length), 0)], queries)
        for step in schedule.first_group:
            columns, where = _lines(step.pieces, keys), f"Rank {rank}, hop {step.hop}"
            for tile in (tile for launch in step.launches for tile in launch.tiles):
                if sum(len(_common(line.place, tile.k)) for line in _meeting(columns, tile.k)) < len(tile.k):
                    return f"{where}: {tile} has columns that no piece of the key buffer holds."
                for span, line, part in _parts(tile, rows, columns):
                    others = blocks.setdefault((rank, span.offset, line.source, line.span.offset), [])
                    if complaint := _complaint(part, mask.block(span, line.span), others):
                        return f"{where}: of {tile}, {complaint} The queries are of {span}, the keys of {line.span}."
                    others.append(part)
    found, area = sum(part.area for parts in blocks.values() for part in parts), mask.area
    return None if found == area else f"Of {area} live cells, {found} are computed. {_gap(queries, keys, blocks, mask)}"


_Held = dict[int, tuple[Span, ...]]  # the spans of every rank
_Block = tuple[int, int, int, int]  # a rank and the offset of a span of its queries, a rank and that of one of its keys


class _Mask:
    """The live cells of any block, in the indices under which the ranks store its queries and keys."""

    def __init__(self, schedule: Schedule, window: Window, stride: int) -> None:
        self.cu_seqlens = schedule.queries.cu_seqlens, schedule.keys.cu_seqlens
        self.window, self.stride = window, stride

    @property
    def area(self) -> int:
        return mask_area(*self.cu_seqlens, self.window)

    def block(self, queries: Span, keys: Span) -> Tile:
        """Not trimmed: of spans of two sequences, a tile without a live cell."""
        left, right = (FAR if side < 0 else side for side in self.window)
        stop_q, stop_k = (borders[queries.sequence + 1] for borders in self.cu_seqlens)
        apart = queries.positions.start + stop_k - stop_q - keys.positions.start
        moved = keys.offset - queries.offset
        low, high = -((left - apart) // self.stride) + moved, (right + apart) // self.stride + moved
        return Tile(queries.rows, keys.rows if queries.sequence == keys.sequence else range(0), low, high)


class _Line(NamedTuple):
    """A run of one span as it lies in a buffer: in column c the owner's row c + shift."""

    place: range
    shift: int
    source: int
    span: Span


def _lines(pieces: Sequence[Piece], spans: _Held) -> list[_Line]:
    """What lies in a buffer, in order of place."""
    found = []
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        held, shift = spans[piece.source], piece.rows.start - piece.offset
        first = bisect_right(held, piece.rows.start, key=lambda span: span.offset) - 1
        for span in held[first : bisect_left(held, piece.rows.stop, key=lambda span: span.offset)]:
            rows = _common(span.rows, piece.rows)
            found.append(_Line(range(rows.start - shift, rows.stop - shift), shift, piece.source, span))
    return found


def _meeting(lines: Sequence[_Line], part: range) -> Sequence[_Line]:
    """The lines that have a place in common with `part`."""
    first = bisect_right(lines, part.start, key=lambda line: line.place.stop)
    return lines[first : bisect_left(lines, part.stop, key=lambda line: line.place.start)]


def _common(a: range, b: range) -> range:
    return range(max(a.start, b.start), min(a.stop, b.stop))


def _parts(tile: Tile, rows: Sequence[_Line], columns: Sequence[_Line]) -> Iterator[tuple[Span, _Line, Tile]]:
    """A tile's share of every block that it reaches: the spans, and its live cells in the indices of the owners."""
    for queries in _meeting(rows, tile.q):
        q = _common(queries.place, tile.q)
        for line in _meeting(columns, tile.k):
            k = _common(line.place, tile.k)
            k = range(k.start + line.shift, k.stop + line.shift)
            part = Tile(q, k, max(tile.low + line.shift, -FAR), min(tile.high + line.shift, FAR)).trim()
            if part:
                yield queries.span, line, part


def _complaint(part: Tile, live: Tile, others: Sequence[Tile]) -> str | None:
    if (inside := _overlap(part, live)) < part.area:
        return f"{part.area - inside} cells are not live in the mask."
    twice = sum(_overlap(part, other) for other in others)
    return f"{twice} cells are computed already." if twice else None


def _overlap(a: Tile, b: Tile) -> int:
    """How many live cells two tiles have in common."""
    q, k, low, high = _common(a.q, b.q), _common(a.k, b.k), max(a.low, b.low), min(a.high, b.high)
    return Tile(q, k, low, high).area if q and k and low <= high else 0


def _gap(queries: _Held, keys: _Held, blocks: dict[_Block, list[Tile]], mask: _Mask) -> str:
    """Names a block of which too little is computed."""
    candidates = defaultdict(list)
    for source, k in ((source, span) for source, spans in keys.items() for span in spans):
        candidates[k.sequence].append((source, k))
    for rank, q in ((rank, span) for rank, spans in queries.items() for span in spans):
        for source, k in candidates[q.sequence]:
            live, found = mask.block(q, k), blocks.get((rank, q.offset, source, k.offset), [])
            if sum(part.area for part in found) < _overlap(live, live):
                return f"Some are missing where {q} of rank {rank} meets the keys {k} of rank {source}."
    raise AssertionError("every block is complete, so their sum is the mask's area")
