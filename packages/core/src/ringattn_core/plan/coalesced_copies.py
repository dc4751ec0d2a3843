"""What a one-sided transport copies for a step: its key slices, or, of many, one range of rows around each source's.

To begin a copy takes a copy engine as long as a megabyte, and its host longer than that. Packed documents are cut into
many slices for every rank, and it is faster to copy the rows between them as well.
"""

from __future__ import annotations

from ringattn_core.plan.columns import row_bounds
from ringattn_core.plan.memo import by_owner
from ringattn_core.plan.schedule import KeySlice, Step

_PIECES = 8  # key slices of each source, on average: up to here they are copied one by one
_ROWS = 512  # copied in the time that one more copy takes to begin: 4 KiB each, with 8 kv heads of 128


@by_owner
def coalesced_copies(step: Step, own: int) -> tuple[KeySlice, ...] | None:
    """One range for each source, in a row, that of rank `own` last; None where slices are few or far apart."""
    if len(step.key_slices) <= _PIECES * len(step.sources):
        return None
    first, last = dict[int, int](), dict[int, int]()  # row of each source that is needed, and the one after it
    for source, start, stop in row_bounds(step.key_slices):
        first[source] = min(start, first.get(source, start))
        last[source] = max(stop, last.get(source, stop))
    found, offset = list[KeySlice](), 0
    for source in sorted(first, key=lambda source: (source == own, source)):
        box = KeySlice(source, range(first[source], last[source]), offset)
        offset = box.columns.stop
        found.append(box)
    saved = len(step.key_slices) - len(found)
    return tuple(found) if offset - step.fetched <= _ROWS * saved else None
