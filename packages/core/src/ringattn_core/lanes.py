"""Launches side by side: one fills the multiprocessors of a GPU that the one before leaves idle as it runs dry.

Transformer Engine runs the hops of its ring on two streams for the same reason. On a CPU one launch follows the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from itertools import cycle
from typing import TypeVar

import torch

from ringattn_core.schedule import Schedule, Step
from ringattn_core.streams import On, current
from ringattn_core.transport import KV

Steps = Iterable[tuple[Step, KV]]
T = TypeVar("T")


def walk(
    schedule: Schedule,
    device: torch.device,
    steps: Steps,
    work: Callable[[Step, KV], Iterable[Callable[[], T]]],
    then: Callable[[Step, list[T]], None],
) -> None:
    """For each step of a schedule its `work` on its keys, launch by launch, and `then` what follows from all of it."""
    if device.type == "cuda" and sum(len(step.launches) for step in schedule.steps) > 1:
        _side_by_side(device, steps, work, then)
    else:
        for step, keys in steps:
            then(step, [launch() for launch in work(step, keys)])


def _side_by_side(
    device: torch.device,
    steps: Steps,
    work: Callable[[Step, KV], Iterable[Callable[[], T]]],
    then: Callable[[Step, list[T]], None],
) -> None:
    """Launches in two streams in turn, `then` on the current one, in order.

    What follows from a step waits until the next step has begun, for each begins after all that the current stream has
    been asked for. So nothing of a step, keys or results, is used again before its work is done.
    """
    main, lanes = current(device), cycle(_lanes(device))
    pending: Callable[[], None] | None = None
    for step, keys in steps:
        found, done = [], []
        for launch, lane in zip(work(step, keys), lanes, strict=False):
            lane.wait_stream(main)
            with On(lane, main):
                found.append(launch())
                done.append(lane.record_event())
        if pending:
            pending()
        pending = _after(main, done, then, step, found)
    if pending:
        pending()


def _after(
    main: torch.cuda.Stream,
    done: list[torch.cuda.Event],
    then: Callable[[Step, list[T]], None],
    step: Step,
    found: list[T],
) -> Callable[[], None]:
    def follow() -> None:
        for event in done:
            main.wait_event(event)
        then(step, found)

    return follow


@cache
def _lanes(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    return torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
