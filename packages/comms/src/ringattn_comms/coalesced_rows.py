"""Where the rows of a step lie whose copies are coalesced: see `ringattn_core.plan.coalesced_copies`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.plan.coalesced_copies import coalesced_copies
from ringattn_core.plan.schedule import KeySlice, Step
from ringattn_core.run.device_plan import DevicePlan, planned


class CoalescedRows(NamedTuple):
    """The boxes of a step, and how its key buffer is made of them, side by side, this rank's own last."""

    coalesced_copies: tuple[KeySlice, ...]
    inward: Tensor  # (rows of the key buffer,) int32: where each of them lies in the boxes
    outward: Tensor  # (rows of the others' boxes,) int32: where each lies in the key buffer; 0 if nowhere

    @property
    def length(self) -> int:
        """Rows in all boxes."""
        return self.coalesced_copies[-1].columns.stop


@planned
def coalesced_rows(plan: DevicePlan, step: Step) -> CoalescedRows | None:
    """How a step travels in boxes; None where its slices are few, and travel one by one."""
    rank = plan.schedule.cp_rank
    found = coalesced_copies(step, rank)
    if found is None:
        return None
    of = {box.source: box for box in found}
    inward = torch.cat([_places(key_slice, of[key_slice.source]) for key_slice in step.key_slices])
    outward = torch.zeros(found[-1].columns.stop, dtype=torch.int64)
    outward[inward] = torch.arange(len(inward))
    others = found[-1].offset if found[-1].source == rank else len(outward)
    return CoalescedRows(found, *(rows.int().to(plan.device) for rows in (inward, outward[:others])))


def _places(key_slice: KeySlice, box: KeySlice) -> Tensor:
    """Where the rows of a piece lie among the boxes."""
    start = box.offset + key_slice.rows.start - box.rows.start
    return torch.arange(start, start + len(key_slice.rows))
