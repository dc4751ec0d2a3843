"""Which cells of a mask the schedules of all ranks compute, by the exact difference of masks.

In a layout with a stride, cells are compared residue by residue, in the coordinates of `placed`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from ringattn_core.plan.band import band_of, moved, strided, tile_of
from ringattn_core.plan.mask import Mask, check_disjoint, disjoint_mask
from ringattn_core.plan.overlaps import common
from ringattn_core.plan.schedule import Schedule, Step
from ringattn_core.plan.tile import Tile


class _Part(NamedTuple):
    """Rows or columns of a rank that are tokens of one residue, one after the other."""

    residue: int
    local: range
    shift: int  # from there to the place in the residue


def complaint_about_mask(schedules: Sequence[Schedule], mask: Mask, stride: int) -> str | None:
    """What is wrong with the cells that are computed; None if every live cell of the mask is computed once."""
    parts, names = defaultdict[tuple[int, int], list[Tile]](list), defaultdict[tuple[int, int], list[str]](list)
    for schedule in schedules:
        rows = list(_held(schedule.queries.stretches(schedule.cp_rank), stride))
        for step in schedule.steps:
            columns = list(_columns(schedule, step, stride))
            for tile in (tile for launch in step.launches for tile in launch.tiles):
                name = f"{tile} of rank {schedule.cp_rank} on hop {step.hop}"
                covered = sum(len(_shared(tile.k, part.local)) for part in _met(columns, tile.k))
                if covered < len(tile.k):
                    return f"{name} has columns that no piece of the key buffer holds."
                for row, column in product(_met(rows, tile.q), _met(columns, tile.k)):
                    if cut := common(tile, Tile(row.local, column.local)):
                        key = row.residue, column.residue
                        parts[key].append(tile_of(moved(band_of(cut), row.shift, column.shift)))
                        names[key].append(name)
    for key in ((row, column) for row in range(stride) for column in range(stride)):
        if complaint := _complaint(parts[key], names[key], _of_residues(mask, *key, stride)):
            every = f"Of every {stride}th token, from query {key[0]} and key {key[1]} on: "
            return complaint if stride == 1 else every + complaint
    return None


def _complaint(parts: list[Tile], names: list[str], mask: Mask) -> str | None:
    try:
        check_disjoint(parts, names)
    except ValueError as twice:
        return str(twice)
    computed = Mask(tuple(parts), mask.num_queries, mask.num_keys)
    if dead := (computed - mask).tiles:
        return f"Cells are computed that are not live in the mask: {dead[0]} of the stream."
    missing = (mask - computed).tiles
    return f"Live cells of the mask are not computed: {missing[0]} of the stream." if missing else None


def _of_residues(mask: Mask, row: int, column: int, stride: int) -> Mask:
    """The mask on the tokens of two residues."""
    bands = (strided(tile, row, column, stride) for tile in mask.tiles)
    lengths = (
        -((residue - tokens) // stride) for residue, tokens in ((row, mask.num_queries), (column, mask.num_keys))
    )
    return disjoint_mask((tile_of(band) for band in bands if band), *lengths)


def _held(stretches: Iterator[range], stride: int) -> Iterator[_Part]:
    """What a rank stores, in storage order."""
    offset = 0
    for positions in stretches:
        place, residue = divmod(positions.start, stride)
        yield _Part(residue, range(offset, offset + len(positions)), place - offset)
        offset += len(positions)


def _columns(schedule: Schedule, step: Step, stride: int) -> Iterator[_Part]:
    """What lies in the key buffer of a step."""
    for key_slice in step.key_slices:
        to_buffer = key_slice.offset - key_slice.rows.start
        for residue, local, shift in _held(schedule.keys.stretches(key_slice.source), stride):
            if rows := _shared(local, key_slice.rows):
                yield _Part(residue, range(rows.start + to_buffer, rows.stop + to_buffer), shift - to_buffer)


def _met(parts: list[_Part], local: range) -> list[_Part]:
    """Those of parts, which are in order, that share some of a range."""
    first = bisect_right(parts, local.start, key=lambda part: part.local.stop)
    return parts[first : bisect_left(parts, local.stop, key=lambda part: part.local.start)]


def _shared(a: range, b: range) -> range:
    return range(max(a.start, b.start), min(a.stop, b.stop))
