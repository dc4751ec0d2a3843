"""Many small pieces of keys travel as a few boxes, and are put in order where they arrive.

A copy engine takes as long to begin a copy as it takes for a megabyte, and its host takes longer than that to ask for
it: of packed documents, cut into pieces for every rank, it is faster to fetch the rows between them as well.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.schedule import Piece, Schedule, Step

_MANY = 8  # pieces of each source: from here on, copies of them take longer than one of all that is between them


class Boxes(NamedTuple):
    """What a step fetches, a box around all that it needs of each source, this rank's own last; where all of it goes.

    The offset of a box is where it lies among the others. What is nowhere in the key buffer nobody looks at.
    """

    boxes: tuple[Piece, ...]
    inward: Tensor  # (rows of the key buffer,) int64: where each of them lies in the boxes
    outward: Tensor  # (rows of the others' boxes,) int64: where each lies in the key buffer; 0 if nowhere

    @property
    def length(self) -> int:
        """Rows in all boxes."""
        return self.boxes[-1].columns.stop


@lru_cache(64)
def boxes(schedule: Schedule, step: Step, device: torch.device) -> Boxes | None:
    """The boxes of a step; None where its pieces are few, and travel one by one."""
    if len(step.pieces) <= _MANY * len(step.sources):
        return None
    own, found, length = schedule.cp_rank, dict[int, Piece](), 0
    for source in sorted({piece.source for piece in step.pieces}, key=lambda source: (source == own, source)):
        rows = [piece.rows for piece in step.pieces if piece.source == source]
        box = range(min(run.start for run in rows), max(run.stop for run in rows))
        found[source] = Piece(source, box, length)
        length += len(box)
    inward = torch.cat([_places(piece, found[piece.source]) for piece in step.pieces])
    outward = torch.zeros(length, dtype=torch.int64)
    outward[inward] = torch.arange(len(inward))
    others = length - len(found[own].rows) if own in found else length
    return Boxes(tuple(found.values()), inward.to(device), outward[:others].to(device))


def _places(piece: Piece, box: Piece) -> Tensor:
    """Where the rows of a piece lie among the boxes."""
    start = box.offset + piece.rows.start - box.rows.start
    return torch.arange(start, start + len(piece.rows))
