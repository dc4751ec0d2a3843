"""The loop over a schedule, and the streams that its launches run on.

On a GPU consecutive launches run on two alternating streams: one fills the SMs that the tail of the other leaves idle.
Transformer Engine runs the hops of its ring on two streams for the same reason. On a CPU each launch runs at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from itertools import cycle
from typing import NamedTuple, Protocol, TypeVar

import torch

from ringattn_core.plan.schedule import Launch, Schedule, Step
from ringattn_core.run.streams import On, current, rank_of_thread
from ringattn_core.run.transport import KV, Transport

T = TypeVar("T")
Work = Callable[[Step, KV], Iterable[Callable[[], T]]]
Fold = Callable[[Step, Launch, T], None]
Close = Callable[[Step], None]


def walk(transport: Transport, work: Work[T], fold: Fold[T], close: Close = lambda step: None) -> None:
    """Run every step of a pass on its keys: `work` makes the calls of a step's launches.

    `fold` takes the result of each launch, in order, and `close` follows when all of a step are folded.
    """
    streams = streams_for(transport.schedule, transport.kv.k.device)
    for step, keys in transport:
        for run, launch in zip(work(step, keys), step.launches, strict=True):
            streams.launch(run, partial(fold, step, launch))
        streams.end_step(keys, partial(close, step))
    streams.finish()


class Streams(Protocol):
    """Where launches run, and when what follows from them does."""

    def launch(self, run: Callable[[], T], then: Callable[[T], None]) -> None:
        """Run a launch of the current step; `then` takes its result."""
        ...

    def end_step(self, keys: KV, then: Callable[[], None]) -> None:
        """The current step has no more launches; `then` follows when what follows from them is done."""
        ...

    def finish(self) -> None:
        """Do everything that follows from the launches so far."""
        ...


def streams_for(schedule: Schedule, device: torch.device) -> Streams:
    """Two streams on a GPU where a pass has several launches."""
    # Ranks of a group all go the same way, whatever each has to compute: it decides when `send_grads` is called.
    several = schedule.cp_size > 1 or sum(len(step.launches) for step in schedule.steps) > 1
    return TwoStreams(device) if device.type == "cuda" and several else OneStream()


class OneStream:
    """Everything at once, on the current stream or the CPU."""

    def launch(self, run: Callable[[], T], then: Callable[[T], None]) -> None:
        then(run())

    def end_step(self, keys: KV, then: Callable[[], None]) -> None:
        then()

    def finish(self) -> None:
        """Nothing is outstanding."""


class _Pending(NamedTuple):
    """What follows from a launch or from a step."""

    step: int
    follow: Callable[[], None]
    # Held here: memory that the current stream frees may be used again before a launch that reads it has run.
    keys: KV | None = None


class TwoStreams:
    """Launches on two streams in turn; what follows from them on the current stream, in order.

    What follows from a step waits until the next step has begun, for each launch begins after all that the current
    stream has been asked for. So nothing of a step, keys or results, is reused before its launches are done. Of a step
    with more than two launches, at most two results wait: the third launch comes after what follows from the first.
    """

    def __init__(self, device: torch.device) -> None:
        self._main = current(device)
        self._streams = cycle(_launch_streams(self._main, rank_of_thread()))
        self._pending = deque[_Pending]()
        self._step = self._launches = 0

    def launch(self, run: Callable[[], T], then: Callable[[T], None]) -> None:
        while self._launches >= 2 and len(self._pending) > 1:
            self._follow()
        stream = next(self._streams)
        stream.wait_stream(self._main)
        with On(stream, self._main):
            found, done = run(), stream.record_event()
        self._launches += 1
        self._pending.append(_Pending(self._step, partial(self._after, done, partial(then, found))))

    def end_step(self, keys: KV, then: Callable[[], None]) -> None:
        self._pending.append(_Pending(self._step, then, keys))
        while self._pending[0].step != self._step:
            self._follow()
        self._step, self._launches = self._step + 1, 0

    def finish(self) -> None:
        while self._pending:
            self._follow()

    def _follow(self) -> None:
        self._pending.popleft().follow()

    def _after(self, done: torch.cuda.Event, then: Callable[[], None]) -> None:
        self._main.wait_event(done)
        then()


@lru_cache(64)
def _launch_streams(main: torch.cuda.Stream, rank: int) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Two more streams for a thread: memory that the current one frees is used there again after `wait_stream`."""
    return torch.cuda.Stream(main.device), torch.cuda.Stream(main.device)  # type: ignore[no-untyped-call]
