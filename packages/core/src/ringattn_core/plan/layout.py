"""Who holds which tokens: a layout is a function, and positions are plain `range` objects.

A layout takes an extent (the positions of one sequence, or of a whole packed stream) and returns the runs of it that
one rank holds, in storage order. Three are those of the field: `contiguous` (ring attention, Liu et al. 2023,
arXiv:2310.01889; llama 3, arXiv:2407.21783), `striped` (Brandon et al. 2023, arXiv:2311.09431) and `zigzag`
(zhuzilin/ring-flash-attention). `windowed(n)` is zigzag up to where a sliding window is full, and contiguous after it.
`balanced` divides a whole packed stream by its work. Lengths need not divide by anything.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, update_wrapper
from itertools import pairwise

from ringattn_core.errors import lookup
from ringattn_core.plan.balance import deal
from ringattn_core.plan.memo import shared
from ringattn_core.plan.tile import chunk

Runs = tuple[range, ...]
Layout = Callable[[range, int, int], Runs]
"""(extent, cp_rank, cp_size) -> the runs of `extent` that this rank holds, in storage order."""


class PackedLayout:
    """A layout as a `Sharding` uses it: of a packed stream, by the borders of its sequences.

    It is a `Layout` too: called with an extent, it divides that as one sequence.
    """

    __name__: str

    def __init__(
        self,
        divide: Layout,
        *,
        runs: Callable[[Sequence[int], int, int], Runs] | None = None,
        owners: Callable[[int], Sequence[int]] | None = None,
        by_work: bool = False,
        built_in: bool = False,
    ) -> None:
        """divide: the layout of an extent.

        runs: (borders, cp_rank, cp_size) -> what a rank holds of the stream from the first border to the last. Without
        it `divide` gets the extent of the stream; with it, single sequences are never divided.
        owners: cp_size -> the ranks that hold the equal chunks into which every extent is cut, in order, if it is.
        by_work: it divides by the work of rows, and under a mask `mask_layout.layout_for` takes the mask's instead.
        built_in: every extent is known to be divided correctly; the runs of other layouts are checked.
        """
        self._divide, self.owners, self.by_work, self.built_in = divide, owners, by_work, built_in
        self.divides_sequences = runs is None
        self.runs = runs or (lambda borders, *rank: divide(range(borders[0], borders[-1]), *rank))
        update_wrapper(self, divide)

    def __call__(self, extent: range, cp_rank: int, cp_size: int) -> Runs:
        return self._divide(extent, cp_rank, cp_size)

    def __repr__(self) -> str:
        return self.__name__

    def __reduce__(self) -> tuple[Callable[..., Layout], tuple[object, ...]]:
        # There is one object of each, by which plans are looked up, and pickles refer to it.
        return layout_named, (self.__name__,)


def _built_in(
    *,
    runs: Callable[[Sequence[int], int, int], Runs] | None = None,
    owners: Callable[[int], Sequence[int]] | None = None,
    by_work: bool = False,
) -> Callable[[Layout], PackedLayout]:
    return lambda divide: PackedLayout(divide, runs=runs, owners=owners, by_work=by_work, built_in=True)


def packed(layout: Layout) -> PackedLayout:
    """The layout itself if it is one of a packed stream; otherwise it is lifted to one."""
    return layout if isinstance(layout, PackedLayout) else PackedLayout(layout)


@_built_in(owners=range)
def contiguous(extent: range, cp_rank: int, cp_size: int) -> Runs:
    """One chunk a rank, in order."""
    return (chunk(extent, cp_rank, cp_size),)


@_built_in(owners=lambda cp_size: (*range(cp_size), *reversed(range(cp_size))))
def zigzag(extent: range, cp_rank: int, cp_size: int) -> Runs:
    """One chunk from the head and its mirror image from the tail: equal work under a causal mask."""
    last = 2 * cp_size - 1
    return chunk(extent, cp_rank, last + 1), chunk(extent, last - cp_rank, last + 1)


@_built_in()
def striped(extent: range, cp_rank: int, cp_size: int) -> Runs:
    """Every `cp_size`-th token, starting from the rank's number."""
    return (extent[cp_rank::cp_size],)


@shared
def windowed(window: int) -> PackedLayout:
    """Zigzag within the first `window` tokens and contiguous beyond them: equal work under a causal sliding window.

    `window` is how many tokens a query sees, itself among them: FlashAttention's left side and one more. All rows
    beyond the first window see the same number, and only those near a rank's ends see remote keys.
    """
    if window < 1:
        raise ValueError(f"windowed(window) takes the tokens that a query sees, 1 or more, got {window}.")

    def layout(extent: range, cp_rank: int, cp_size: int) -> Runs:
        return *zigzag(extent[:window], cp_rank, cp_size), chunk(extent[window:], cp_rank, cp_size)

    layout.__name__ = f"windowed({window})"
    return PackedLayout(layout, built_in=True)


def _share(borders: Sequence[int], cp_rank: int, cp_size: int) -> Runs:
    start = borders[0]  # Rows of a batch with the same lengths are dealt once, as if they began at 0.
    runs = _dealt(tuple(border - start for border in borders), cp_size)[cp_rank]
    return tuple(range(start + run.start, start + run.stop) for run in runs)


@lru_cache(8)
def _dealt(borders: tuple[int, ...], cp_size: int) -> list[Runs]:
    return [share.runs for share in deal(borders, cp_size)]


@_built_in(runs=_share, by_work=True)
def balanced(extent: range, cp_rank: int, cp_size: int) -> Runs:
    """Parts of a packed stream: equal tokens and equal work under a causal mask for each rank, few sequences cut.

    A `Sharding` never divides single sequences by it: most of them lie whole on one rank, in tiles as large as they
    are. The extent alone counts as one sequence, and is divided as by `zigzag`, to a few rows.
    """
    return _share((extent.start, extent.stop), cp_rank, cp_size)


def chunk_owners(layout: Layout, cp_size: int) -> Sequence[int] | None:
    """The ranks that hold the equal chunks into which a layout cuts any extent, in order; None where it does not.

    With this, many sequences are planned as columns of numbers: see `Chunks`.
    """
    owners = packed(layout).owners
    return owners(cp_size) if owners else None


LAYOUTS: dict[str, Layout] = {"contiguous": contiguous, "zigzag": zigzag, "striped": striped, "balanced": balanced}
"""Layouts by name; "windowed(4096)" is one too."""


def layout_named(name: str | Layout) -> Layout:
    """The layout of this name: one of `LAYOUTS` or "windowed(4096)"; a layout itself is passed through.

    Raises ValueError with the nearest name.
    """
    return lookup(name, LAYOUTS, "layout", {"windowed": windowed}) if isinstance(name, str) else name


@dataclass(frozen=True, slots=True)
class Span:
    """A run of one sequence's positions (in the packed stream), stored on a rank from local index `offset` on."""

    sequence: int
    positions: range
    offset: int

    @property
    def rows(self) -> range:
        """The local indices at which the run is stored."""
        return range(self.offset, self.offset + len(self.positions))


@dataclass(frozen=True, slots=True)
class Sharding:
    """How packed sequences are divided among ranks: everything that `shard` needs besides the rank.

    `cu_seqlens` are the borders of the sequences, global. The layout divides every sequence by itself (`per_sequence`)
    or the whole stream, as `balanced` always does; a batch is a stream of `batch` equal rows, each of them divided.

    >>> Sharding(zigzag, (0, 8, 12), cp_size=2).positions(0)  # of each sequence the first and the last quarter
    [0, 1, 6, 7, 8, 11]
    >>> Sharding(zigzag, (0, 8, 12), cp_size=2, per_sequence=False).positions(0)  # of all 12 tokens
    [0, 1, 2, 9, 10, 11]
    >>> Sharding(balanced, (0, 8, 12, 16), cp_size=2).positions(0)  # of the three, the second stays whole
    [6, 7, 8, 9, 10, 11, 12, 13]
    """

    layout: Layout
    cu_seqlens: tuple[int, ...]
    cp_size: int
    per_sequence: bool = True
    batch: int = 1

    @property
    def of_sequences(self) -> bool:
        """Every sequence is divided by itself; otherwise the whole stream is, or every row of a batch."""
        return self.per_sequence and packed(self.layout).divides_sequences

    @property
    def spreads_sequences(self) -> bool:
        """No sequence of more than a few tokens lies whole on a rank: each is divided, or the stream is in stripes."""
        return self.of_sequences or next((run.step for _, run in self.runs(0)), 1) > 1

    def runs(self, cp_rank: int) -> Iterator[tuple[int, range]]:
        """(sequence, positions) of every run that a rank holds, in storage order; no run crosses two sequences."""
        if self.of_sequences:
            runs = packed(self.layout).runs
            for sequence, borders in enumerate(pairwise(self.cu_seqlens)):
                yield from ((sequence, run) for run in runs(borders, cp_rank, self.cp_size) if run)
        else:
            for run in self.stretches(cp_rank):
                yield from _split(run, self.cu_seqlens)

    def stretches(self, cp_rank: int) -> Iterator[range]:
        """The positions that a rank holds, in storage order, whatever sequences they are of."""
        if self.of_sequences:
            yield from (run for _, run in self.runs(cp_rank))
            return
        length = self.cu_seqlens[-1] // self.batch
        for row in range(self.batch):
            start, stop = row * length, (row + 1) * length
            inner = self.cu_seqlens[bisect_right(self.cu_seqlens, start) : bisect_left(self.cu_seqlens, stop)]
            yield from filter(len, packed(self.layout).runs((start, *inner, stop), cp_rank, self.cp_size))

    def spans(self, cp_rank: int) -> tuple[Span, ...]:
        """What a rank holds, in storage order."""
        found, offset = [], 0
        for sequence, run in self.runs(cp_rank):
            found.append(Span(sequence, run, offset))
            offset += len(run)
        return tuple(found)

    def positions(self, cp_rank: int) -> list[int]:
        """The stream position of every token that a rank stores, in storage order."""
        return [position for _, run in self.runs(cp_rank) for position in run]

    def length(self, cp_rank: int) -> int:
        """How many tokens a rank stores."""
        return sum(map(len, self.stretches(cp_rank)))


def _split(run: range, cu_seqlens: tuple[int, ...]) -> Iterator[tuple[int, range]]:
    """Cut a run of the stream at the borders of the sequences in it."""
    while run:
        sequence = bisect_right(cu_seqlens, run.start) - 1
        inside = -((run.start - cu_seqlens[sequence + 1]) // run.step)  # tokens of the run before the next border
        yield sequence, run[:inside]
        run = run[inside:]
