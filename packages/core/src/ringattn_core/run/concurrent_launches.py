"""Runs consecutive launches on two alternating streams: one fills the SMs that the other's tail leaves idle.

Transformer Engine runs the hops of its ring on two streams for the same reason. On a CPU one launch follows the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from itertools import cycle
from typing import NamedTuple, TypeVar

import torch

from ringattn_core.plan.schedule import Launch, Schedule, Step
from ringattn_core.run.streams import On, current, rank_of_thread
from ringattn_core.run.transport import KV

Steps = Iterable[tuple[Step, KV]]
T = TypeVar("T")
Work = Callable[[Step, KV], Iterable[Callable[[], T]]]
Fold = Callable[[Step, Launch, T], None]
Close = Callable[[Step], None]


def walk(
    schedule: Schedule,
    device: torch.device,
    steps: Steps,
    work: Work[T],
    fold: Fold[T],
    close: Close = lambda step: None,
) -> None:
    """For each step of a schedule its `work` on its keys, launch by launch.

    `fold` gets what each launch found, in order, and `close` comes when all of a step's are folded.
    """
    # Ranks of a group all go the same way, however few launches one has: gradients are given in another order there.
    several = schedule.cp_size > 1 or sum(len(step.launches) for step in schedule.steps) > 1
    if device.type == "cuda" and several:
        _side_by_side(device, steps, work, fold, close)
    else:
        for step, keys in steps:
            for run, launch in zip(work(step, keys), step.launches, strict=True):
                fold(step, launch, run())
            close(step)


class _Pending(NamedTuple):
    """What follows from work that a lane has been asked for."""

    step: Step
    keys: KV  # held here, for memory that the current stream lets go of may be its own again before a lane is done
    follow: Callable[[], None]


def _side_by_side(device: torch.device, steps: Steps, work: Work[T], fold: Fold[T], close: Close) -> None:
    """Launches in two streams in turn, `fold` and `close` on the current one, in order.

    What follows from a step waits until the next step has begun, for each begins after all that the current stream has
    been asked for. So nothing of a step, keys or results, is used again before its work is done. Of a step with more
    than two launches, no more than two results wait: the third launch comes after what follows from the first.
    """
    main = current(device)
    streams, pending = cycle(_launch_streams(main, rank_of_thread())), deque[_Pending]()
    for step, keys in steps:
        for number, (run, launch, stream) in enumerate(zip(work(step, keys), step.launches, streams, strict=False)):
            while number >= 2 and len(pending) > 1:
                pending.popleft().follow()
            stream.wait_stream(main)
            with On(stream, main):
                found, done = run(), stream.record_event()
            pending.append(_Pending(step, keys, partial(_after, main, done, partial(fold, step, launch, found))))
        pending.append(_Pending(step, keys, partial(close, step)))
        while pending[0].step is not step:
            pending.popleft().follow()
    while pending:
        pending.popleft().follow()


def _after(main: torch.cuda.Stream, done: torch.cuda.Event, then: Callable[[], None]) -> None:
    main.wait_event(done)
    then()


@lru_cache(64)
def _launch_streams(main: torch.cuda.Stream, rank: int) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Two streams beside one, for one thread: memory that it lets go of is used there again after `wait_stream`."""
    return torch.cuda.Stream(main.device), torch.cuda.Stream(main.device)  # type: ignore[no-untyped-call]
