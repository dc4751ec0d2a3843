"""Where the rows of a step lie that travels in boxes: see `ringattn_core.boxes`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.boxes import boxes
from ringattn_core.index import kept
from ringattn_core.schedule import Piece, Schedule, Step


class Boxed(NamedTuple):
    """The boxes of a step, and how its key buffer is made of them, side by side, this rank's own last."""

    boxes: tuple[Piece, ...]
    inward: Tensor  # (rows of the key buffer,) int32: where each of them lies in the boxes
    outward: Tensor  # (rows of the others' boxes,) int32: where each lies in the key buffer; 0 if nowhere

    @property
    def length(self) -> int:
        """Rows in all boxes."""
        return self.boxes[-1].columns.stop


def boxed(schedule: Schedule, step: Step, device: torch.device) -> Boxed | None:
    """How a step travels in boxes; None where its pieces are few, and travel one by one."""
    return _boxed(schedule, step.hop, device) if boxes(step, schedule.cp_rank) else None


@kept
def _boxed(schedule: Schedule, hop: int, device: torch.device) -> Boxed:
    """The same for all head groups."""
    step = schedule.on_hop(hop)
    found = boxes(step, schedule.cp_rank)
    assert found is not None, "boxed has asked"
    of = {box.source: box for box in found}
    inward = torch.cat([_places(piece, of[piece.source]) for piece in step.pieces])
    outward = torch.zeros(found[-1].columns.stop, dtype=torch.int64)
    outward[inward] = torch.arange(len(inward))
    others = found[-1].offset if found[-1].source == schedule.cp_rank else len(outward)
    return Boxed(found, *(rows.int().to(device) for rows in (inward, outward[:others])))


def _places(piece: Piece, box: Piece) -> Tensor:
    """Where the rows of a piece lie among the boxes."""
    start = box.offset + piece.rows.start - box.rows.start
    return torch.arange(start, start + len(piece.rows))
