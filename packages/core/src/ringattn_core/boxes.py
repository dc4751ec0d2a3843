"""What a one-sided transport copies for a step: its pieces, or, where they are many, a box around those of each source.

A copy engine takes as long to begin a copy as it takes for a megabyte, and its host takes longer than that to ask for
it: of packed documents, cut into pieces for every rank, it is faster to copy the rows between them as well.
"""

from __future__ import annotations

from ringattn_core.memo import by_owner
from ringattn_core.schedule import Piece, Step

_PIECES = 8  # of each source, on average: fewer travel one by one
_ROWS = 512  # that are copied while one more copy begins: 4 KiB each, as of 8 kv heads of 128


@by_owner
def boxes(step: Step, own: int) -> tuple[Piece, ...] | None:
    """A box for each source, that of rank `own` last, side by side; None where the pieces are few or far apart."""
    if len(step.pieces) <= _PIECES * len(step.sources):
        return None
    found, offset = list[Piece](), 0
    for source in sorted({piece.source for piece in step.pieces}, key=lambda source: (source == own, source)):
        rows = [piece.rows for piece in step.pieces if piece.source == source]
        box = Piece(source, range(min(run.start for run in rows), max(run.stop for run in rows)), offset)
        offset = box.columns.stop
        found.append(box)
    saved = len(step.pieces) - len(found)
    return tuple(found) if offset - step.fetched <= _ROWS * saved else None
