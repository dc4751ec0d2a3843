"""A rank's schedules of a call: of its forward and of its backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringattn.agree import Peers
from ringattn.choice import Kernels, auto
from ringattn.lengths import Borders
from ringattn_core.look.auto import CANDIDATES
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.local_rows import default_early_rows
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_planner import plan_mask
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import Route
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import Window

if TYPE_CHECKING:
    from ringattn.call import CallSpec


def schedules(
    spec: CallSpec, sharding: Sharding, borders_k: Borders, seen: Window | Mask, kernels: Kernels, peers: Peers
) -> tuple[Schedule, Schedule]:
    """This rank's schedules of the forward and the backward pass."""
    cp, comm, borders_q = spec.cp, spec.cp.communicator, sharding.cu_seqlens
    if callable(cp.route):
        first, second = cp.route, cp.route
    else:
        first, second = (CANDIDATES[name] for name in auto(sharding, seen, kernels, peers))

    def planned(route: Route, num_early_rows: int) -> Schedule:
        if isinstance(seen, Mask):
            return plan_mask(
                *(seen, sharding.layout, route, comm.rank, comm.size),
                cu_seqlens=borders_q,
                cu_seqlens_k=borders_k,
                per_sequence=cp.per_sequence,
                batch=sharding.batch,
                num_early_rows=num_early_rows,
            )
        return plan(
            *(sharding.layout, route, borders_q, borders_k, comm.rank, comm.size),
            window=seen,
            per_sequence=cp.per_sequence,
            batch=sharding.batch,
            num_early_rows=num_early_rows,
        )

    backward = planned(second, 0)
    # With dropout both passes have the same launches, because a mask belongs to a launch.
    num_early_rows = default_early_rows(borders_q[-1] // comm.size)
    return backward if spec.dropout_p > 0 else planned(first, num_early_rows), backward
