"""Whether pieces lie soundly in key buffers, kernels can take all launches, and ranks lend what others fetch.

Each function says what is wrong first, in words, or None. A rank's pieces and tiles are compared all at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ringattn_core.look.table import PieceTable, SpanTable, TileTable, first_true, numbered, piece_table, tile_table
from ringattn_core.plan.planner import outgoing_rows
from ringattn_core.plan.schedule import Schedule, Step
from ringattn_core.plan.tile import FAR, joined_runs


def complaint_about_pieces(schedule: Schedule, lengths: Sequence[int]) -> str | None:
    """The rows are there in the shards, which have these lengths, and have a place of their own in the buffer."""
    steps = schedule.steps
    table, given = piece_table([step.key_slices for step in steps]), torch.tensor(lengths)
    among = torch.zeros(len(steps), len(lengths), dtype=torch.bool)
    among[numbered(len(step.sources) for step in steps), [source for step in steps for source in step.sources]] = True
    alone = torch.tensor([len(step.sources) == 1 for step in steps])
    source, end = table.source.clamp(0, len(lengths) - 1), table.offset + table.size
    order = (table.step * (int(end.max()) + 1) + table.offset).argsort() if len(end) else end
    overlaps = torch.zeros_like(alone[table.step])
    same = table.step[order[1:]] == table.step[order[:-1]]
    overlaps[order[1:]] = same & (table.offset[order[1:]] < end[order[:-1]])
    faults = {
        "is not of one of its sources {sources}": ~among[table.step, source] | (source != table.source),
        "is not within the {length} keys of its source": (table.size < 1)
        | (table.start < 0)
        | (table.start + table.size > given[source]),
        "overlaps another in the key buffer": overlaps | (table.offset < 0),
        "is not where its only source stores it": alone[table.step] & (table.offset != table.start),
    }
    for fault, wrong in faults.items():
        if (index := first_true(wrong)) is not None:
            step = steps[table.step[index]]
            said = fault.format(sources=step.sources, length=int(given[source[index]]))
            return f"{table.key_slice(index)} of rank {schedule.cp_rank} on hop {step.hop} {said}."
    return None


def complaint_about_launches(schedule: Schedule) -> str | None:
    """A kernel can take them as they are."""
    table = tile_table(schedule)
    _, launch, top, bottom, first, last, _, _ = table
    windows = _windows(table)
    begins = launch.diff(prepend=launch.new_full((1,), -1)) != 0  # it is the first of its launch
    leader = begins.nonzero().flatten()[begins.cumsum(0) - 1]
    clashes = ~begins[1:] & ((top[1:] < bottom[:-1]) | (first[1:] < last[:-1]))
    faults = {
        "{tile} in {where} is not within the rank's {length} queries": (top < 0) | (bottom > schedule.query_length),
        "{tile} in {where} has rows or columns without a live cell; trimmed, {trimmed}": ~_trimmed(table),
        "{tile} in {where} has the window {tile.window} and another tile {leader.window}": torch.stack(
            [window != window[leader] for window in windows]
        ).any(0),
        "{tile} and {after} in {where} share rows or columns, or are out of order": torch.cat(
            [clashes, clashes.new_zeros(1)]
        )[: len(top)],
    }
    for fault, wrong in faults.items():
        if (index := first_true(wrong)) is not None:
            where = f"a launch of rank {schedule.cp_rank} on hop {schedule.steps[table.step[index]].hop}"
            tile, after = table.tile(index), table.tile(min(index + 1, len(top) - 1))
            others = {"after": after, "leader": table.tile(int(leader[index])), "trimmed": tile.trim()}
            return f"{fault.format(tile=tile, where=where, length=schedule.query_length, **others)}."
    return None


def _trimmed(tiles: TileTable) -> Tensor:
    """Whether every row and column has a live cell, and a side of the band that no cell reaches is open."""
    _, _, top, bottom, first, last, low, high = tiles
    rows = (top < bottom) & (top >= first - high) & (bottom <= last - low)
    columns = (first < last) & (first >= top + low) & (last <= bottom + high)
    sides = ((low == -FAR) | (low > first - bottom + 1)) & ((high == FAR) | (high < last - 1 - top))
    return rows & columns & sides & (low <= high)


def _windows(tiles: TileTable) -> tuple[Tensor, Tensor]:
    """As `Tile.window`."""
    _, _, top, bottom, first, last, low, high = tiles
    left = torch.where(low <= first - bottom + 1, -1, last - bottom - low)
    return left, torch.where(high >= last - 1 - top, -1, high - (last - bottom))


def complaint_about_lending(schedules: Sequence[Schedule]) -> str | None:
    """What a rank finds that it lends is what the others' pieces say."""
    spans = SpanTable(schedules[0].keys)
    for index, step in enumerate(schedules[0].steps):
        fetched = piece_table([schedule.steps[index].key_slices for schedule in schedules])
        fetched = PieceTable(*(column[fetched.source != fetched.step] for column in fetched))
        lends = piece_table([outgoing_rows(schedule, step.hop) for schedule in schedules])
        lends = lends._replace(step=lends.source, source=lends.step)  # as those who fetch see them
        theirs, found = (_runs(table, spans) for table in (fetched, lends))
        if not torch.equal(theirs, found):
            return _disagreement(step, fetched, lends, len(schedules))
    return None


def _runs(key_slices: PieceTable, spans: SpanTable) -> Tensor:
    """The rows that each rank fetches as pairs of begin and end, in order, and each as long as it goes on."""
    begin = key_slices.step * (int(spans.length.sum()) + 1) + spans.shard[key_slices.source] + key_slices.start
    begin, order = begin.sort()
    end = begin + key_slices.size[order]
    apart = begin[1:] != end[:-1]
    edge = apart.new_ones(min(len(begin), 1))
    return torch.stack([begin[torch.cat([edge, apart])], end[torch.cat([apart, edge])]])


def _disagreement(step: Step, fetched: PieceTable, lends: PieceTable, cp_size: int) -> str:
    for rank in range(cp_size):
        for owner in range(cp_size):
            theirs, found = (
                joined_runs(
                    range(start, start + size)
                    for start, size in zip(table.start[pair].tolist(), table.size[pair].tolist(), strict=True)
                )
                for table in (fetched, lends)
                for pair in ((table.step == rank) & (table.source == owner),)
            )
            if theirs != found:
                return (
                    f"On hop {step.hop} rank {rank} fetches the rows {theirs} of rank {owner}, which by its route "
                    f"lends {found}."
                )
    raise AssertionError("the rows of all pairs agree")
