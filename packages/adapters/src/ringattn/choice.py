"""What a call leaves open: which kernel computes a schedule, and which routes "auto" is."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ringattn.agree import Terms
from ringattn_comms.communicator import Communicator
from ringattn_core.errors import UnsupportedError
from ringattn_core.kernels.choose import choose, installed, question
from ringattn_core.look.auto import Routes, auto_routes, typical
from ringattn_core.look.machine import machine_of
from ringattn_core.look.shape import ACCUMULATOR, Shape
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.kernel import Kernel, Options


class Kernels(NamedTuple):
    """All that the choice of a kernel depends on beside the schedule."""

    q: Tensor
    k: Tensor
    v: Tensor
    options: Options
    name: str | None
    lse_gradient: bool

    def choose(self, schedule: Schedule) -> Kernel:
        """Raises what `choose` does."""
        return choose(self.q, self.k, self.v, schedule, self.options, self.name, lse_gradient=self.lse_gradient)

    def able(self, schedule: Schedule) -> str | None:
        """The name of the kernel that `choose` takes, None where that is the slow one, or where there is none."""
        try:
            chosen = self.choose(schedule).name
        except UnsupportedError:
            return None
        return None if chosen == "reference" else chosen


def auto(comm: Communicator, sharding: Sharding, window: tuple[int, int], kernels: Kernels, terms: Terms) -> Routes:
    """The names of the fastest routes, the same on all ranks: once they tell each other what they decide by."""
    device = kernels.q.device
    if device.type != "cuda":
        return Routes("waves", "waves")  # Of other devices nothing is known.
    if comm.size > 1 and len(set(comm.agreement.introduce(device.type, _facts(device), terms.encode()))) > 1:
        return Routes("waves", "waves")
    like = typical(sharding)
    one_sided = comm.shared_buffers(device) is not None
    asked = like, window, one_sided, question(*kernels)
    if asked not in _ROUTES:
        if len(_ROUTES) == 256:
            _ROUTES.clear()
        q, k, v, *_ = kernels
        itemsize = q.element_size()
        shape = Shape(
            *(q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1], itemsize),
            grad_itemsize=itemsize if one_sided else ACCUMULATOR,
        )
        machine = machine_of(torch.cuda.get_device_name(device))
        _ROUTES[asked] = auto_routes(like, window, shape, machine, one_sided=one_sided, kernel=kernels.able)
    return _ROUTES[asked]


@cache
def _facts(device: torch.device) -> str:
    """What a choice of routes depends on that ranks may differ in."""
    return f"{torch.cuda.get_device_name(device)}, {', '.join(installed())}"


_ROUTES: dict[Hashable, Routes] = {}
