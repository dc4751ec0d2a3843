"""The index tensors of a schedule on a device, in one object: each is made when a pass first needs it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar, TypeVarTuple
from weakref import ref

import torch

from ringattn_core.plan.memo import by_owner
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.streams import capturing

T = TypeVar("T")
Key = TypeVarTuple("Key")

_MOST_CAPTURED = 1 << 12
_captured = dict[int, object]()  # by id


class DevicePlan:
    """What `planned` functions have made for one schedule on one device.

    It lives as long as its schedule (see `device_plan`). One without a schedule serves launches by themselves.
    """

    def __init__(self, device: torch.device, schedule: Schedule | None = None) -> None:
        self.device = device
        self.made = dict[Hashable, Any]()  # by function and arguments
        # Through a weak reference, because a schedule keeps its plans alive.
        self._schedule = None if schedule is None else ref(schedule)

    @property
    def schedule(self) -> Schedule:
        """The schedule, which is alive in all of its passes."""
        schedule = None if self._schedule is None else self._schedule()
        assert schedule is not None, "only passes of a schedule ask for it"
        return schedule


def planned(make: Callable[[DevicePlan, *Key], T]) -> Callable[[DevicePlan, *Key], T]:
    """A function of a plan and, for example, one of its launches or steps, which is called once for each.

    Its result lives as long as the plan, and must not refer to the schedule.
    """

    @wraps(make)
    def get(plan: DevicePlan, *key: *Key) -> T:
        known = (make, *key)
        if known not in plan.made:
            with torch.inference_mode(False):  # A plan that is made in inference may be used in training later.
                plan.made[known] = make(plan, *key)
        found: T = plan.made[known]
        return found

    return get


def device_plan(schedule: Schedule, device: torch.device) -> DevicePlan:
    """The plan of a schedule on a device, one for all of its passes there. It is freed with the schedule.

    A CUDA graph reads the plan whenever it is replayed: see `for_graphs`.
    """
    return for_graphs(_device_plan(schedule, device))


@by_owner
def _device_plan(schedule: Schedule, device: torch.device) -> DevicePlan:
    return DevicePlan(device, schedule)


def for_graphs(read: T) -> T:
    """The argument, which is never freed if a CUDA graph is captured now: nothing tells when the last graph is gone.

    Raises RuntimeError where graphs of ever new plans are captured, before that fills the memory.
    """
    if capturing():
        _captured[id(read)] = read
        if len(_captured) > _MOST_CAPTURED:
            raise RuntimeError(
                f"CUDA graphs have been captured that read the index tensors of {_MOST_CAPTURED} different plans, and "
                "each graph keeps its tensors: capture one graph for each of a few packings, and use them again."
            )
    return read
