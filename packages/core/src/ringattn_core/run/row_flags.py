"""What the fused sums do with each row of a launch: where they read its old value, and where they write the new one."""

from __future__ import annotations

import torch
from torch import Tensor

from ringattn_core.plan.row_writes import RowWrite, column_writes, row_writes
from ringattn_core.plan.schedule import Launch, Step
from ringattn_core.run.device_plan import DevicePlan, planned

# A row is written; its old value is read from the final dtype, or from float32; its new value goes to float32.
_WRITTEN, _NARROW, _WIDE, _WIDEN = 1, 2, 4, 8


@planned
def row_flags_of(plan: DevicePlan, launch: Launch) -> Tensor:
    """The flags of a launch's query rows."""
    return flags(row_writes(plan.schedule).of[launch], launch.rows, plan.device)


@planned
def column_flags_of(plan: DevicePlan, step: Step, length: int, launch: Launch) -> Tensor:
    """The flags of a launch's key columns, in a step's buffer of this length."""
    return flags(column_writes(step, length).of[launch], launch.columns, plan.device)


def flags(writes: list[RowWrite], box: range, device: torch.device) -> Tensor:
    """A flag for each row of a launch's box; see `row_writes` for what is counted.

    row of the box    2       3       4       5       6       7
    launches before   0       0       1       1       2       -
    others follow     no      yes     no      yes     no      -
    old value from    -       -       narrow  narrow  wide    -
    new value to      narrow  narrow  narrow  wide    narrow  -
    flag              1       1       3       11      5       0

    Row 7 lies between the tiles of the launch. `narrow` is the result in the final dtype, `wide` a copy in float32.
    """
    row_flags = torch.zeros(len(box), dtype=torch.uint8)
    for write in writes:
        row_flags[write.rows.start - box.start : write.rows.stop - box.start] = _code(write)
    return row_flags.to(device)


def _code(write: RowWrite) -> int:
    source = (0, _NARROW, _WIDE)[min(write.write_index, 2)]
    return _WRITTEN | source | (_WIDEN if write.write_index > 0 and not write.last else 0)
