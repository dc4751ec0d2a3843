"""What a call leaves open: which kernel computes a schedule, and which routes "auto" stands for."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn.agree import Peers
from ringattn_core.errors import UnsupportedError
from ringattn_core.kernels.choose import choose, question
from ringattn_core.look.auto import UNPREDICTED, Routes, auto_routes
from ringattn_core.look.machine import machine_of
from ringattn_core.look.shape import ACCUMULATOR, Shape
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import Window
from ringattn_core.run.kernel import Kernel, Options


class Kernels(NamedTuple):
    """All that the choice of a kernel depends on, without the schedule."""

    q: Tensor
    k: Tensor
    v: Tensor
    options: Options
    name: str | None
    lse_gradient: bool

    def choose(self, schedule: Schedule) -> Kernel:
        """The kernel for a schedule. Raises what `choose` of ringattn_core does."""
        return choose(self.q, self.k, self.v, schedule, self.options, self.name, lse_gradient=self.lse_gradient)

    def speed(self, schedule: Schedule) -> tuple[float, float] | None:
        """The speed of the kernel that `choose` takes; None where that is the slow one, or where there is none."""
        try:
            return self.choose(schedule).speed
        except UnsupportedError:
            return None


def auto(sharding: Sharding, seen: Window | Mask, kernels: Kernels, peers: Peers) -> Routes:
    """The names of the routes that are predicted to be the fastest, the same on all ranks.

    Where the ranks' devices differ, or are none that predictions are made for, it is "waves". So it is for a mask: to
    plan schedules of all routes for each new one would take longer than the choice is worth.
    """
    if not peers.alike or isinstance(seen, Mask):
        return UNPREDICTED
    asked = sharding, seen, peers.one_sided, question(*kernels)
    if asked not in _ROUTES:
        if len(_ROUTES) == 64:
            _ROUTES.clear()
        q, k, v, *_ = kernels
        itemsize = q.element_size()
        shape = Shape(
            *(q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1], itemsize),
            grad_itemsize=itemsize if peers.one_sided else ACCUMULATOR,
        )
        machine = machine_of(torch.cuda.get_device_name(q.device))
        _ROUTES[asked] = auto_routes(sharding, seen, shape, machine, one_sided=peers.one_sided, speed=kernels.speed)
    return _ROUTES[asked]


_ROUTES: dict[Hashable, Routes] = {}
