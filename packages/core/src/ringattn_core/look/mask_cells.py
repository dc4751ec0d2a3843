"""Which cells of a mask the schedules of all ranks compute, by the exact difference of masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ringattn_core.plan.mask import Mask, check_disjoint
from ringattn_core.plan.overlaps import common
from ringattn_core.plan.schedule import Schedule, Step
from ringattn_core.plan.tile import FAR, Tile


def complaint_about_mask(schedules: Sequence[Schedule], mask: Mask) -> str | None:
    """What is wrong with the cells that are computed; None if every live cell of the mask is computed once."""
    parts, names = list[Tile](), list[str]()
    for schedule in schedules:
        for step in schedule.steps:
            columns = list(_columns(schedule, step))
            for tile in (tile for launch in step.launches for tile in launch.tiles):
                name = f"{tile} of rank {schedule.cp_rank} on hop {step.hop}"
                covered = sum(len(range(max(tile.k.start, c.start), min(tile.k.stop, c.stop))) for c, _ in columns)
                if covered < len(tile.k):
                    return f"{name} has columns that no piece of the key buffer holds."
                found = list(_in_stream(schedule, tile, columns))
                parts += found
                names += [name] * len(found)
    try:
        check_disjoint(parts, names)
    except ValueError as twice:
        return str(twice)
    computed = Mask(tuple(parts), mask.num_queries, mask.num_keys)
    if dead := (computed - mask).tiles:
        return f"Cells are computed that are not live in the mask: {dead[0]} of the stream."
    missing = (mask - computed).tiles
    return f"Live cells of the mask are not computed: {missing[0]} of the stream." if missing else None


def _columns(schedule: Schedule, step: Step) -> Iterator[tuple[range, int]]:
    """What lies in the key buffer: columns, and how far they are from their positions in the stream."""
    for key_slice in step.key_slices:
        moved = key_slice.offset - key_slice.rows.start
        for span in schedule.keys.spans(key_slice.source):
            rows = range(max(span.rows.start, key_slice.rows.start), min(span.rows.stop, key_slice.rows.stop))
            if rows:
                yield range(rows.start + moved, rows.stop + moved), span.positions.start - span.offset - moved


def _in_stream(schedule: Schedule, tile: Tile, columns: Sequence[tuple[range, int]]) -> Iterator[Tile]:
    """The parts of a tile in the coordinates of the stream."""
    for span in schedule.queries.spans(schedule.cp_rank):
        down = span.positions.start - span.offset
        for part, right in columns:
            if cut := common(tile, Tile(span.rows, part)):
                apart = right - down
                yield Tile(
                    range(cut.q.start + down, cut.q.stop + down),
                    range(cut.k.start + right, cut.k.stop + right),
                    cut.low if cut.low == -FAR else cut.low + apart,
                    cut.high if cut.high == FAR else cut.high + apart,
                )
