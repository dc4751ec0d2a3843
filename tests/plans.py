"""Random planning problems, small enough to look at every cell of their masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from hypothesis import strategies as st

from ringattn_core.plan.layout import Layout, balanced, contiguous, striped, zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import Route, double_ring, ring, waves
from ringattn_core.plan.schedule import Launch, Schedule, Step
from ringattn_core.plan.tile import Window, chunk


def wound(extent: range, cp_rank: int, cp_size: int) -> tuple[range, ...]:
    """A layout that is none of ours: three chunks, stored with the last one first."""
    parts = (3 * cp_size - 1 - cp_rank, cp_rank, cp_size + cp_rank)
    return tuple(chunk(extent, part, 3 * cp_size) for part in parts)


def returning(cp_rank: int, cp_size: int) -> tuple[tuple[int, ...], ...]:
    """A route that is none of ours: one's own keys, then a neighbour's, then the others' and one's own again."""
    neighbour, *rest = ((cp_rank + distance) % cp_size for distance in range(1, cp_size + 1))
    return ((cp_rank,), (neighbour,), (*rest[:-1], cp_rank)) if rest else ((cp_rank,), (cp_rank,))


@dataclass(frozen=True)
class Case:
    """What `plan` takes, but the rank."""

    layout: Layout
    route: Route
    cu_seqlens_q: tuple[int, ...]
    cu_seqlens_k: tuple[int, ...]
    cp_size: int
    window: Window = (-1, 0)
    per_sequence: bool = True
    batch: int = 1
    num_early_rows: int = 0

    def plan(self) -> list[Schedule]:
        """The schedules of all ranks."""
        return [
            plan(
                self.layout,
                self.route,
                self.cu_seqlens_q,
                self.cu_seqlens_k,
                rank,
                self.cp_size,
                window=self.window,
                per_sequence=self.per_sequence,
                batch=self.batch,
                num_early_rows=self.num_early_rows,
            )
            for rank in range(self.cp_size)
        ]

    def live(self) -> Iterator[tuple[int, int]]:
        """Every live cell of the mask, in positions of the stream."""
        left, right = self.window
        for (start_q, stop_q), (start_k, stop_k) in zip(
            pairwise(self.cu_seqlens_q), pairwise(self.cu_seqlens_k), strict=True
        ):
            for q in range(start_q, stop_q):
                last = q + stop_k - stop_q  # the key at which the query stands, aligned bottom-right
                for k in range(start_k, stop_k):
                    if (left < 0 or k >= last - left) and (right < 0 or k <= last + right):
                        yield q, k


def causal(
    layout: Layout, route: Route, cp_size: int, *lengths: int, window: Window = (-1, 0), num_early_rows: int = 0
) -> list[Schedule]:
    """The schedules of all ranks for sequences of these lengths."""
    borders = tuple(accumulate(lengths, initial=0))
    return Case(layout, route, borders, borders, cp_size, window, num_early_rows=num_early_rows).plan()


def computed(schedules: Sequence[Schedule]) -> Counter[tuple[int, int]]:
    """How often each cell is computed, in positions of the stream."""
    found: Counter[tuple[int, int]] = Counter()
    for schedule in schedules:
        q = schedule.queries.positions(schedule.cp_rank)
        for step in schedule.steps:
            k = keys_at_hand(schedule, step)
            for tile in (tile for launch in step.launches for tile in launch.tiles):
                for i in tile.q:
                    found.update((q[i], k[j]) for j in tile.k if tile.low <= j - i <= tile.high)
    return found


def keys_at_hand(schedule: Schedule, step: Step) -> dict[int, int]:
    """The stream position of every column of a step's buffer that holds a needed key."""
    return {
        column: position
        for key_slice in step.key_slices
        for column, position in zip(
            key_slice.columns,
            schedule.keys.positions(key_slice.source)[key_slice.rows.start : key_slice.rows.stop],
            strict=True,
        )
    }


def with_step(schedule: Schedule, index: int, **changes: object) -> Schedule:
    """The schedule with one step changed."""
    steps = list(schedule.steps)
    steps[index] = replace(steps[index], **changes)
    return replace(schedule, steps=tuple(steps))


def unchecked(*tiles: object) -> Launch:
    """A launch that has not checked itself, as one made under `python -O` has not."""
    launch = object.__new__(Launch)
    object.__setattr__(launch, "tiles", tiles)
    return launch


@st.composite
def cases(draw: st.DrawFn, most: int = 24) -> Case:
    """Problems of all kinds, with sequences of up to `most` tokens."""
    cp_size = draw(st.integers(1, 8))
    routes = [
        ring,
        returning,
        *map(waves, range(1, 5)),
        *(double_ring(n) for n in range(1, cp_size + 1) if cp_size % n == 0),
    ]
    batch, count = draw(st.sampled_from([1, 1, 1, 2])), draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(0, most), min_size=count, max_size=count))
    cross = draw(st.booleans())
    lengths_k = draw(st.lists(st.integers(0, most), min_size=count, max_size=count)) if cross else lengths
    side = st.sampled_from([-1, -1, 0, 1, 2, 3, 5, 8, 13, 30])
    return Case(
        draw(st.sampled_from([contiguous, zigzag, striped, balanced, wound])),
        draw(st.sampled_from(routes)),
        tuple(accumulate(lengths * batch, initial=0)),
        tuple(accumulate(lengths_k * batch, initial=0)),
        cp_size,
        draw(st.one_of(st.just((-1, 0)), st.tuples(side, side))),
        draw(st.booleans()),
        batch,
        draw(st.integers(0, 6)),
    )
