"""What a one-sided transport copies for a step: its pieces, or, where they are many, a box around those of each source.

A copy engine takes as long to begin a copy as it takes for a megabyte, and its host takes longer than that to ask for
it: of packed documents, cut into pieces for every rank, it is faster to copy the rows between them as well.
"""

from __future__ import annotations

from ringattn_core.plan.memo import by_owner
from ringattn_core.plan.schedule import KeySlice, Step

_PIECES = 8  # of each source, on average: fewer travel one by one
_ROWS = 512  # that are copied while one more copy begins: 4 KiB each, as of 8 kv heads of 128


@by_owner
def coalesced_copies(step: Step, own: int) -> tuple[KeySlice, ...] | None:
    """A box for each source, that of rank `own` last, side by side; None where the pieces are few or far apart."""
    if len(step.key_slices) <= _PIECES * len(step.sources):
        return None
    found, offset = list[KeySlice](), 0
    for source in sorted(
        {key_slice.source for key_slice in step.key_slices}, key=lambda source: (source == own, source)
    ):
        rows = [key_slice.rows for key_slice in step.key_slices if key_slice.source == source]
        box = KeySlice(source, range(min(run.start for run in rows), max(run.stop for run in rows)), offset)
        offset = box.columns.stop
        found.append(box)
    saved = len(step.key_slices) - len(found)
    return tuple(found) if offset - step.fetched <= _ROWS * saved else None
