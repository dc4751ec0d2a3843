"""Schedules that would go wrong are told apart from those that would not, with the reason."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plans import Case, cases, causal, unchecked, with_step
from ringattn_core.look.verify import ScheduleError, verify
from ringattn_core.plan.layout import Layout, contiguous, striped, zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import gather, ring, waves
from ringattn_core.plan.schedule import KeySlice, Launch, Schedule
from ringattn_core.plan.tile import Tile

Change = Callable[[list[Schedule]], list[Schedule]]


def ring_of_four() -> list[Schedule]:
    return causal(zigzag, ring, 4, 32)


def waves_of_four() -> list[Schedule]:
    return causal(zigzag, waves(2), 4, 32)


def on(rank: int, index: int, **changes: object) -> Change:
    """A change of one step of one rank."""
    return lambda group: [
        with_step(schedule, index, **changes) if schedule.cp_rank == rank else schedule for schedule in group
    ]


def test_what_is_right_passes() -> None:
    verify(ring_of_four())
    verify(ring_of_four(), (-1, 0))
    verify(waves_of_four(), (-1, 0))
    verify(causal(striped, gather, 8, 100, 0, 7), (-1, 0))


def test_an_error_is_a_value_error_and_can_be_sent_between_processes() -> None:
    assert isinstance(pickle.loads(pickle.dumps(ScheduleError("why"))), ValueError)


@pytest.mark.parametrize("window", [(-1, -1), (-1, 1), (4, 0), (0, 0)])
def test_another_mask_is_told_apart(window: tuple[int, int]) -> None:
    with pytest.raises(ScheduleError):
        verify(ring_of_four(), window)


WRONG_GROUPS: list[tuple[str, Change]] = [
    ("There is no schedule to verify", lambda group: []),
    ("Schedule 0 of 3 is that of rank 0 of 4", lambda group: group[:3]),
    ("Schedule 0 of 4 is that of rank 1 of 4", lambda group: [group[1], group[0], *group[2:]]),
    ("Ranks 0 and 3 differ in queries", lambda group: [*group[:3], causal(zigzag, ring, 4, 31)[3]]),
    ("Ranks 0 and 3 differ in window", lambda group: [*group[:3], replace(group[3], window=(-1, -1))]),
    ("Ranks 0 and 3 differ in route", lambda group: [*group[:3], replace(group[3], route=gather)]),
    ("which by its route lends", lambda group: [replace(schedule, route=gather) for schedule in group]),
    ("Ranks 0 and 3 differ in shifts", lambda group: [*group[:3], replace(group[3], shifts=False)]),
    ("shard_size is 7", lambda group: [replace(schedule, shard_size=7) for schedule in group]),
    ("Rank 2 takes the hops", on(2, 3, hop=4)),
    ("they start at 0 and increase", lambda group: [replace(s, steps=s.steps[1:]) for s in group]),
    (
        "they start at 0 and increase",
        lambda group: [replace(s, steps=(s.steps[0], s.steps[2], s.steps[1], s.steps[3])) for s in group],
    ),
]

WRONG_STEPS: list[tuple[str, Change]] = [
    ("Rank 0 has the sources .4,. on hop 1", on(0, 1, sources=(4,))),
    ("Rank 0 has the sources .1,. on hop 0", on(0, 0, sources=(1,))),
    ("names the destinations .3,. on hop 1, but it is among the sources of .2,.", on(1, 1, destinations=(3,))),
    ("is not of one of its sources", on(1, 1, key_slices=(KeySlice(3, range(8), 0),))),
    ("is not within the 8 keys of its source", on(1, 1, key_slices=(KeySlice(0, range(9), 0),))),
    ("is not where its only source stores it", on(1, 1, key_slices=(KeySlice(0, range(4), 1),))),
    (
        "overlaps another in the key buffer",
        on(1, 1, key_slices=(KeySlice(0, range(4), 0), KeySlice(0, range(3, 8), 3))),
    ),
    ("no piece of the key buffer holds", on(1, 1, key_slices=(KeySlice(0, range(3), 0),))),
    ("not within the rank's 8 queries", on(1, 1, launches=(Launch((Tile(range(9), range(4)),)),))),
    ("rows or columns without a live cell", on(1, 0, launches=(Launch((Tile(range(8), range(8), high=-1),)),))),
    ("rows or columns without a live cell", on(1, 0, launches=(Launch((Tile(range(0), range(8)),)),))),
    (
        "has the window .-1, -1. and another tile .-1, 0.",
        on(1, 0, launches=(unchecked(Tile(range(4), range(4), high=0), Tile(range(4, 8), range(4, 8))),)),
    ),
    (
        "share rows or columns, or are out of order",
        on(1, 1, launches=(unchecked(Tile(range(4), range(4)), Tile(range(4, 8), range(4))),)),
    ),
    ("are computed. Some are missing", on(1, 1, launches=())),
    ("cells are computed already", lambda group: on(1, 1, launches=group[1].steps[1].launches * 2)(group)),
    ("cells are not live in the mask", on(1, 0, launches=(Launch((Tile(range(8), range(8)),)),))),
]


@pytest.mark.parametrize(("message", "change"), WRONG_GROUPS + WRONG_STEPS)
def test_what_is_wrong_is_told(message: str, change: Change) -> None:
    with pytest.raises(ScheduleError, match=message):
        verify(change(ring_of_four()), (-1, 0))


def test_a_ring_that_does_not_shift_is_told() -> None:
    turned = [replace(schedule, shifts=True) for schedule in causal(zigzag, backwards, 4, 32)]
    with pytest.raises(ScheduleError, match="that is no shift"):
        verify(turned, (-1, 0))
    verify(causal(zigzag, backwards, 4, 32), (-1, 0))


def backwards(cp_rank: int, cp_size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(((cp_rank + hop) % cp_size,) for hop in range(cp_size))


def test_keys_that_come_twice_are_told() -> None:
    group = [
        replace(schedule, steps=(schedule.steps[0], schedule.steps[1], replace(schedule.steps[1], hop=2)))
        for schedule in waves_of_four()
    ]
    with pytest.raises(ScheduleError, match="Rank 0 receives keys twice"):
        verify(group, (-1, 0))


def test_ones_own_keys_may_come_twice_only_if_they_were_alone_on_hop_0() -> None:
    group = causal(zigzag, gather, 4, 32)
    verify(group, (-1, 0))
    ranks = tuple(range(4))
    together = [with_step(schedule, 0, sources=ranks, destinations=ranks) for schedule in group]
    with pytest.raises(ScheduleError, match="Rank 0 receives keys twice"):
        verify(together, (-1, 0))
    again = [replace(schedule, steps=(*schedule.steps, replace(schedule.steps[0], hop=2))) for schedule in group]
    with pytest.raises(ScheduleError, match="Rank 0 receives keys twice"):
        verify(again, (-1, 0))


LAYOUTS: dict[str, Layout] = {
    "leaves out 4 of the 8 positions of sequence 0": lambda extent, rank, size: (
        extent[: len(extent) // 2][rank::size],
    ),
    "has position 0 twice": lambda extent, rank, size: (extent,),
    r"puts range\(4, 9\) into sequence 0, range\(0, 8\)": lambda extent, rank, size: (
        range(4 * rank, 4 * rank + 4 + rank),
    ),
}


@pytest.mark.parametrize(("message", "layout"), LAYOUTS.items())
def test_layouts_that_are_no_division_are_told(message: str, layout: Layout) -> None:
    with pytest.raises(ScheduleError, match=message):
        verify([plan(layout, ring, (0, 8), (0, 8), rank, 2) for rank in range(2)], (-1, -1))


def test_layouts_of_two_strides_are_told() -> None:
    sharding = Case(contiguous, ring, (0, 8), (0, 8), 1).plan()[0].queries
    mixed = replace(sharding, layout=lambda extent, rank, size: (extent[:2], extent[2::2], extent[3::2]))
    schedule = replace(causal(contiguous, ring, 1, 8)[0], queries=mixed)
    with pytest.raises(ScheduleError, match=r"strides \[1, 2\]: one positive stride is needed"):
        verify([schedule], (-1, 0))


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from(["gone", "top", "bottom", "start", "stop", "low", "high"]), st.data())
def test_any_change_of_any_tile_is_noticed(case: Case, edge: str, data: st.DataObject) -> None:
    group = case.plan()
    places = [
        (schedule.cp_rank, index, launch)
        for schedule in group
        for index, step in enumerate(schedule.steps)
        for launch in step.launches
    ]
    assume(places)
    rank, index, launch = data.draw(st.sampled_from(places))
    tile = data.draw(st.sampled_from(launch.tiles))
    changed = _moved(tile, edge, data.draw(st.sampled_from([-1, 1])))
    assume(changed is None or _cells(changed) != _cells(tile))
    rest = [other for other in group[rank].steps[index].launches if other is not launch]
    kept = tuple(other for other in launch.tiles if other is not tile)
    rest += [unchecked(*tiles) for tiles in (kept, () if changed is None else (changed,)) if tiles]
    group[rank] = with_step(group[rank], index, launches=tuple(rest))
    with pytest.raises(ScheduleError):
        verify(group, case.window)


def _moved(tile: Tile, edge: str, by: int) -> Tile | None:
    """The tile with one edge or one side of its band moved."""
    edges = {"top": tile.q.start, "bottom": tile.q.stop, "start": tile.k.start, "stop": tile.k.stop}
    band = {"low": tile.low, "high": tile.high}
    if edge == "gone":
        return None
    (band if edge in band else edges)[edge] += by
    return Tile(range(edges["top"], edges["bottom"]), range(edges["start"], edges["stop"]), band["low"], band["high"])


def _cells(tile: Tile) -> set[tuple[int, int]]:
    return {(i, j) for i in tile.q for j in tile.k if tile.low <= j - i <= tile.high}
