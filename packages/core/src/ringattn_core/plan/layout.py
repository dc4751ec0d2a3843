"""Who holds which tokens: a layout is a function, and positions are plain `range` objects.

A layout takes an extent (the positions of one sequence, or of a whole packed stream) and answers with the runs of it
that one rank holds, in storage order. Three are those of the field: `contiguous` (ring attention, Liu et al. 2023,
arXiv:2310.01889; llama 3, arXiv:2407.21783), `striped` (Brandon et al. 2023, arXiv:2311.09431) and `zigzag`
(zhuzilin/ring-flash-attention). `windowed(n)` is zigzag up to where a sliding window is full, and contiguous after it.
`balanced` deals a whole packed stream out by its work. Lengths need not divide by anything.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from ringattn_core.errors import lookup
from ringattn_core.plan.balance import deal
from ringattn_core.plan.memo import shared
from ringattn_core.plan.tile import chunk

Layout = Callable[[range, int, int], tuple[range, ...]]
"""(extent, cp_rank, cp_size) -> the runs of `extent` that this rank holds, in storage order."""


def contiguous(extent: range, cp_rank: int, cp_size: int) -> tuple[range, ...]:
    """One chunk a rank, in order."""
    return (chunk(extent, cp_rank, cp_size),)


def zigzag(extent: range, cp_rank: int, cp_size: int) -> tuple[range, ...]:
    """One chunk from the head and its mirror image from the tail: equal work under a causal mask."""
    last = 2 * cp_size - 1
    return chunk(extent, cp_rank, last + 1), chunk(extent, last - cp_rank, last + 1)


def striped(extent: range, cp_rank: int, cp_size: int) -> tuple[range, ...]:
    """Every `cp_size`-th token, starting from the rank's own number."""
    return (extent[cp_rank::cp_size],)


@shared
def windowed(window: int) -> Layout:
    """Zigzag within the first `window` tokens and contiguous beyond them: equal work under a causal sliding window.

    `window` is how many tokens a query sees, itself among them: FlashAttention's left side and one more. Rows beyond
    the first window all see as many, and only those near a rank's ends see others' keys.
    """
    if window < 1:
        raise ValueError(f"windowed(window) takes the tokens that a query sees, 1 or more, got {window}.")

    def layout(extent: range, cp_rank: int, cp_size: int) -> tuple[range, ...]:
        return *zigzag(extent[:window], cp_rank, cp_size), chunk(extent[window:], cp_rank, cp_size)

    layout.__name__ = f"windowed({window})"
    return layout


def balanced(extent: range, cp_rank: int, cp_size: int) -> tuple[range, ...]:
    """Parts of a packed stream: as many tokens and as much work under a causal mask for each rank, few sequences cut.

    A `Sharding` never divides single sequences by it: most of them lie whole on one rank, in tiles as large as they
    are. The extent alone counts as one sequence, and is divided as by `zigzag`, to a few rows.
    """
    return _share((extent.start, extent.stop), cp_rank, cp_size)


def _share(cu_seqlens: Sequence[int], cp_rank: int, cp_size: int) -> tuple[range, ...]:
    """What `balanced` gives a rank of a stream with these borders, which need not begin at 0."""
    start = cu_seqlens[0]  # Rows of a batch that are alike are dealt once.
    runs = _dealt(tuple(border - start for border in cu_seqlens), cp_size)[cp_rank]
    return tuple(range(start + run.start, start + run.stop) for run in runs)


@lru_cache(8)
def _dealt(cu_seqlens: tuple[int, ...], cp_size: int) -> list[tuple[range, ...]]:
    """What `balanced` gives every rank."""
    return [share.runs for share in deal(cu_seqlens, cp_size)]


def chunk_owners(layout: Layout, cp_size: int) -> Sequence[int] | None:
    """The ranks that hold the equal chunks into which a layout cuts any extent, in order; None where it does not.

    What is known of all extents at once makes the planning of many sequences quick: see `Chunks`.
    """
    if layout is contiguous:
        return range(cp_size)
    return (*range(cp_size), *reversed(range(cp_size))) if layout is zigzag else None


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
    """How packed sequences are divided among ranks: all that `shard` needs but the rank.

    `cu_seqlens` are the borders of the sequences, global. The layout divides every sequence by itself (`per_sequence`)
    or the whole stream, as `balanced` always does; a batch is a stream of `batch` equal rows, each of them divided.
    """

    layout: Layout
    cu_seqlens: tuple[int, ...]
    cp_size: int
    per_sequence: bool = True
    batch: int = 1

    @property
    def of_sequences(self) -> bool:
        """Is every sequence divided by itself? Else the whole stream is, or every row of a batch."""
        return self.per_sequence and self.layout is not balanced

    def runs(self, cp_rank: int) -> Iterator[tuple[int, range]]:
        """(sequence, positions) of every run that a rank holds, in storage order; no run crosses two sequences."""
        if self.of_sequences:
            for sequence, (start, stop) in enumerate(pairwise(self.cu_seqlens)):
                for run in self.layout(range(start, stop), cp_rank, self.cp_size):
                    if run:
                        yield sequence, run
        else:
            length = self.cu_seqlens[-1] // self.batch
            for row in range(self.batch):
                for run in self._row(range(row * length, (row + 1) * length), cp_rank):
                    yield from _split(run, self.cu_seqlens)

    def _row(self, extent: range, cp_rank: int) -> tuple[range, ...]:
        """What a rank holds of a row of the batch."""
        if self.layout is not balanced:
            return self.layout(extent, cp_rank, self.cp_size)
        inside = (border for border in self.cu_seqlens if extent.start < border < extent.stop)
        return _share((extent.start, *inside, extent.stop), cp_rank, self.cp_size)

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
        return sum(len(run) for _, run in self.runs(cp_rank))


def _split(run: range, cu_seqlens: tuple[int, ...]) -> Iterator[tuple[int, range]]:
    """Cut a run of the stream at the borders of the sequences in it."""
    while run:
        sequence = bisect_right(cu_seqlens, run.start) - 1
        inside = -((run.start - cu_seqlens[sequence + 1]) // run.step)  # tokens of the run before the next border
        yield sequence, run[:inside]
        run = run[inside:]
