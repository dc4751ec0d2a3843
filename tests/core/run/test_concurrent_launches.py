"""In which order a GPU is asked for what, with streams that only take notes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from noted_streams import Stream
from plans import Case
from ringattn_core.plan.layout import contiguous, zigzag
from ringattn_core.plan.route import gather, ring
from ringattn_core.plan.schedule import Launch, Schedule, Step
from ringattn_core.run import concurrent_launches
from ringattn_core.run.transport import KV, LocalTransport

NOTHING = KV(torch.empty(0), torch.empty(0))


def asked(schedule: Schedule, monkeypatch: pytest.MonkeyPatch, *, several: bool = True) -> list[str]:
    """What the GPU is asked for, without the waits of streams for the main one, before each launch of several."""
    notes: list[str] = []
    streams = [Stream(name, notes) for name in ("main", "left", "right")]
    monkeypatch.setattr(concurrent_launches, "current", lambda device: streams[0])
    monkeypatch.setattr(concurrent_launches, "_launch_streams", lambda main, rank: streams[1:])
    monkeypatch.setattr(concurrent_launches, "On", lambda lane, main: nullcontext())
    number = {launch: str(n) for n, launch in enumerate(launch for step in schedule.steps for launch in step.launches)}

    def work(step: Step, keys: KV) -> Iterator[Any]:
        notes.append(f"step {step.hop}")
        for launch in step.launches:
            yield partial(notes.append, number[launch])

    def fold(step: Step, launch: Launch, found: None) -> None:
        notes.append(f"fold {number[launch]}")

    class Steps(LocalTransport):
        def __iter__(self) -> Iterator[tuple[Step, KV]]:
            return ((step, NOTHING) for step in self.schedule.steps)

    with FakeTensorMode():
        kv = KV(*2 * [torch.empty(0, device="cuda")])
    close = lambda step: notes.append(f"close {step.hop}")  # noqa: E731
    concurrent_launches.walk(Steps(schedule, kv), work, fold, close)
    waits = [index for index, note in enumerate(notes) if note in ("left waits for main", "right waits for main")]
    lane_of = [notes[index].split()[0] for index in waits]
    assert lane_of == [("left", "right")[n % 2] for n in range(len(waits))], "in turn"
    assert [notes[index + 1] for index in waits] == several * list(number.values()), (
        "each waits, then its launch is asked for"
    )
    return [note for index, note in enumerate(notes) if index not in waits]


def test_a_step_is_folded_when_the_next_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Case(zigzag, ring, (0, 8), (0, 8), 2).plan()[0]
    assert asked(schedule, monkeypatch) == [
        *("step 0", "0"),
        *("step 1", "1"),
        *("main waits for 0", "fold 0", "close 0"),
        *("main waits for 1", "fold 1", "close 1"),
    ]


def test_no_more_than_two_results_of_a_step_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    borders = (0, 6, 10, 13, 20, 25, 34)
    schedule = Case(contiguous, gather, borders, borders, 2, window=(2, 1)).plan()[1]
    assert [len(step.launches) for step in schedule.steps] == [3, 3]
    assert asked(schedule, monkeypatch) == [
        *("step 0", "0", "1"),
        *("main waits for 0", "fold 0", "2"),
        *("step 1", "3", "4"),
        *("main waits for 1", "fold 1", "main waits for 2", "fold 2", "close 0"),
        *("main waits for 3", "fold 3", "5"),
        *("main waits for 4", "fold 4", "main waits for 5", "fold 5", "close 1"),
    ]


@pytest.mark.parametrize("cp_size", [1, 2])
def test_one_launch_of_several_ranks_goes_the_way_of_many(cp_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ranks have more: all give their gradients in one order. A rank of one waits for nothing."""
    schedule = Case(contiguous, ring, (0, 8), (0, 8), cp_size).plan()[0]
    assert sum(len(step.launches) for step in schedule.steps) == 1
    expected = {
        1: ["step 0", "0", "fold 0", "close 0"],
        2: ["step 0", "0", "step 1", "main waits for 0", "fold 0", "close 0", "close 1"],
    }
    assert asked(schedule, monkeypatch, several=cp_size > 1) == expected[cp_size]


def test_a_step_without_a_launch_is_closed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Case(zigzag, gather, (0, 16), (0, 16), 3).plan()[1]
    assert [len(step.launches) for step in schedule.steps] == [0, 2]
    assert asked(schedule, monkeypatch) == [
        *("step 0", "step 1", "0", "1", "close 0"),
        *("main waits for 0", "fold 0", "main waits for 1", "fold 1", "close 1"),
    ]


def test_the_loop_is_short_and_the_docs_show_it() -> None:
    """The page includes the function from its source, which a reader is to take in at once."""
    lines = inspect.getsource(concurrent_launches.walk).splitlines()
    assert len(lines) <= 20
    page = (Path(__file__).parents[3] / "docs/concepts/schedules.md").read_text(encoding="utf-8")
    included = re.search(r"```\{literalinclude\} (\S+)\n:pyobject: walk\n```", page)
    assert included is not None
    source = (Path(__file__).parents[3] / "docs/concepts" / included[1]).resolve()
    assert source == Path(concurrent_launches.__file__).resolve()
