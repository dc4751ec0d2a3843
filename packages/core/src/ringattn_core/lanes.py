"""Steps side by side: one fills the multiprocessors of a GPU that the one before leaves idle as it runs dry.

Transformer Engine runs the hops of its ring on two streams for the same reason. On a CPU one step follows the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
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
    work: Callable[[Step, KV], T],
    then: Callable[[Step, T], None],
) -> None:
    """For each step of a schedule what it finds in its keys, and what follows from that."""
    if device.type == "cuda" and len(schedule.steps) > 1:
        _side_by_side(device, steps, work, then)
    else:
        for step, keys in steps:
            then(step, work(step, keys))


def _side_by_side(
    device: torch.device, steps: Steps, work: Callable[[Step, KV], T], then: Callable[[Step, T], None]
) -> None:
    """`work` in two streams in turn, `then` on the current one, in order.

    What follows from a step waits until the next step has begun, for each begins after all that the current stream has
    been asked for. So nothing of a step, keys or results, is used again before its work is done.
    """
    main = current(device)
    pending: Callable[[], None] | None = None
    for number, (step, keys) in enumerate(steps):
        lane = _lanes(device)[number % 2]
        lane.wait_stream(main)
        with On(lane, main):
            found = work(step, keys)
            done = lane.record_event()
        if pending:
            pending()
        pending = _after(main, done, then, step, found)
    if pending:
        pending()


def _after(
    main: torch.cuda.Stream, done: torch.cuda.Event, then: Callable[[Step, T], None], step: Step, found: T
) -> Callable[[], None]:
    def follow() -> None:
        main.wait_event(done)
        then(step, found)

    return follow


@cache
def _lanes(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    return torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
