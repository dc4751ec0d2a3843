"""Proof that the schedules of all ranks agree, and that together they compute every live cell of the mask once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import Window


class ScheduleError(ValueError):
    """The schedules of a group would not compute the attention; the message names the first thing that is wrong."""


def verify(schedules: Sequence[Schedule], window: Window | None = None) -> None:
    """Raise ScheduleError unless the schedules, of all ranks in their order, compute the attention under this window.

    Without a window, it is the window or the mask for which they were planned. What is checked: every position is held
    by one rank; every live cell of the mask is computed once; the ranks take the same steps and agree on who sends what
    to whom; what others fetch of a rank's keys is what it finds that it lends (`planner.outgoing_rows`); keys lie in
    their buffers where the launches look for them; and a kernel can take every launch: its window is sound, no row or
    column is in it twice.
    """
    _check_group(schedules)
    for name in ("queries", "keys"):
        check_sharding(getattr(schedules[0], name), name)
    stride = _stride([schedules[0].queries, schedules[0].keys])
    _check_sources(schedules)
    lengths = [schedule.key_length for schedule in schedules]
    if schedules[0].shard_size != max(lengths):
        raise ScheduleError(f"shard_size is {schedules[0].shard_size}, but a rank holds up to {max(lengths)} keys.")
    for complaint in _complaints(schedules, window, stride):
        if complaint:
            raise ScheduleError(complaint)


def _complaints(schedules: Sequence[Schedule], window: Window | None, stride: int) -> Iterator[str | None]:
    """What is wrong with pieces and tiles, or None for each kind in which nothing is."""
    # To plan takes no PyTorch, which these count with.
    from ringattn_core.look.coverage import complaint_about_cells
    from ringattn_core.look.mask_cells import complaint_about_mask
    from ringattn_core.look.sound import complaint_about_launches, complaint_about_lending, complaint_about_pieces

    for schedule in schedules:
        yield complaint_about_pieces(schedule, [other.key_length for other in schedules])
        yield complaint_about_launches(schedule)
    if window is None and (mask := schedules[0].mask) is not None:
        yield complaint_about_mask(schedules, mask, stride)
    else:
        yield complaint_about_cells(schedules, window or schedules[0].window, stride)
    yield complaint_about_lending(schedules)


def _check_group(schedules: Sequence[Schedule]) -> None:
    """All ranks of one group, in order, with the same steps."""
    if not schedules:
        raise ScheduleError("There is no schedule to verify: give those of all ranks, in their order.")
    first = schedules[0]
    for rank, schedule in enumerate(schedules):
        if (schedule.cp_rank, schedule.cp_size) != (rank, len(schedules)):
            raise ScheduleError(
                f"Schedule {rank} of {len(schedules)} is that of rank {schedule.cp_rank} of {schedule.cp_size}: "
                "give the schedules of all ranks, in their order."
            )
        for name in ("queries", "keys", "shard_size", "shifts", "route", "window", "mask"):
            if getattr(schedule, name) != getattr(first, name):
                raise ScheduleError(f"Ranks 0 and {rank} differ in {name}.")
        if (hops := _hops(schedule)) != _hops(first):
            raise ScheduleError(f"Rank {rank} takes the hops {hops} where rank 0 takes {_hops(first)}.")
        _check_hops(schedule)


def _check_hops(schedule: Schedule) -> None:
    hops = _hops(schedule)
    if not hops or hops[0] != 0 or hops != sorted(set(hops)):
        raise ScheduleError(f"Rank {schedule.cp_rank} takes the hops {hops}: they start at 0 and increase.")


def _hops(schedule: Schedule) -> list[int]:
    return [step.hop for step in schedule.steps]


def check_sharding(sharding: Sharding, name: str) -> None:
    """Raise ScheduleError unless every position of every sequence is held once."""
    held: dict[int, int] = defaultdict(int)
    stride = _stride([sharding])
    last: dict[int, range] = {}  # of every residue of the stride, the last run so far
    runs = [(sequence, run) for rank in range(sharding.cp_size) for sequence, run in sharding.runs(rank)]
    for sequence, run in sorted(runs, key=lambda found: found[1].start):
        start, stop = sharding.cu_seqlens[sequence : sequence + 2]
        if run[0] < start or run[-1] >= stop:
            raise ScheduleError(
                f"The layout of the {name} puts {run} into sequence {sequence}, range({start}, {stop})."
            )
        before = last.get(run.start % stride)
        if before and run.start <= before[-1]:
            raise ScheduleError(f"The layout of the {name} has position {run.start} twice: in {before} and {run}.")
        last[run.start % stride] = run
        held[sequence] += len(run)
    for sequence, (start, stop) in enumerate(pairwise(sharding.cu_seqlens)):
        if held[sequence] != stop - start:
            raise ScheduleError(
                f"The layout of the {name} leaves out {stop - start - held[sequence]} of the {stop - start} positions "
                f"of sequence {sequence}."
            )


def _stride(shardings: Iterable[Sharding]) -> int:
    """The one distance of neighbours in all runs."""
    strides = {
        run.step
        for sharding in shardings
        for rank in range(sharding.cp_size)
        for _, run in sharding.runs(rank)
        if len(run) > 1
    }
    if len(strides) > 1 or min(strides, default=1) < 1:
        raise ScheduleError(
            f"The runs of the layout have the strides {sorted(strides)}: one positive stride is needed."
        )
    return min(strides, default=1)


def _check_sources(schedules: Sequence[Schedule]) -> None:
    """Sources and destinations agree; no keys come twice, except local ones that were alone on hop 0."""
    ranks = range(len(schedules))
    for index, step in enumerate(schedules[0].steps):
        steps = [schedule.steps[index] for schedule in schedules]
        receivers: dict[int, list[int]] = defaultdict(list)
        for rank, own in enumerate(steps):
            for source in own.sources:
                receivers[source].append(rank)
        for rank, own in enumerate(steps):
            if any(source not in ranks for source in own.sources) or (step.hop == 0 and rank not in own.sources):
                raise ScheduleError(f"Rank {rank} has the sources {own.sources} on hop {own.hop}.")
            if sorted(own.destinations) != receivers[rank]:
                raise ScheduleError(
                    f"Rank {rank} names the destinations {own.destinations} on hop {own.hop}, but it is among the "
                    f"sources of {tuple(receivers[rank])}."
                )
            if own.sources != ((rank - own.hop) % len(schedules),) and schedules[0].shifts:
                raise ScheduleError(f"Rank {rank} has the sources {own.sources} on hop {own.hop}: that is no shift.")
    for schedule in schedules:
        sources = [source for step in schedule.steps for source in step.sources]
        if schedule.steps[0].sources == (schedule.cp_rank,):
            sources = sources[1:]
        if len(sources) != len(set(sources)):
            raise ScheduleError(f"Rank {schedule.cp_rank} receives keys twice: its sources are {sources}.")
