"""Which rank gets what of a packed stream: equal tokens and equal work for each, and few documents cut.

The documents stand in a line, those whose rows see the most keys first, each from its last row to its first: under a
causal mask, rows that see many keys come before rows that see few. A rank takes rows from both ends of what is left;
how many from which end decides how much work it gets. For one document this is zigzag, to a few rows. Only documents at
the ends of these pieces are cut, so most of many documents lie whole on a rank.

Three documents of 8, 4 and 4 tokens for two ranks; the work of a row is the number of keys that it sees:

    position   7 6 5 4 3 2 1 0 | 15 14 13 12 | 11 10 9 8
    work       8 7 6 5 4 3 2 1 |  4  3  2  1 |  4  3 2 1
    rank       0 0 1 1 1 1 1 1 |  1  1  0  0 |  0  0 0 0    8 rows and 28 cells each

>>> deal((0, 8, 12, 16), cp_size=2)
[Share(runs=(range(6, 14),), work=28), Share(runs=(range(0, 6), range(14, 16)), work=28)]
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

from ringattn_core.plan.tile import chunk, joined_runs, triangle

_EVEN = 1.01  # times the mean counts as even
_HALVINGS, _LEAST = 6, 64  # of documents; more for other masks, until parts have no more rows than this


class Share(NamedTuple):
    """What a rank gets: runs of the stream, in its order, and how many live cells are in their rows."""

    runs: tuple[range, ...]
    work: int


class Work(Protocol):
    """What the rows of a stream cost."""

    most: int  # live cells of the row that has the most

    def before(self, row: int) -> int:
        """The live cells of all rows before this one of the stream."""


class CausalWork:
    """The work of packed documents with these borders under a causal mask."""

    def __init__(self, cu_seqlens: Sequence[int]) -> None:
        lengths = [stop - start for start, stop in pairwise(cu_seqlens)]
        self.most = max(lengths, default=0)
        self._borders, self._cells = cu_seqlens, [0, *accumulate(map(triangle, lengths))]

    def before(self, row: int) -> int:
        """The live cells of all rows before this one."""
        document = bisect_right(self._borders, row) - 1
        return self._cells[document] + triangle(row - self._borders[document])


def deal(cu_seqlens: Sequence[int], cp_size: int, work: Work | None = None) -> list[Share]:
    """Every rank's share; their lengths differ by one token at most.

    `work` is what rows cost, that of a causal mask where none is given; the documents are parts of the stream that are
    better not cut. Where a few documents are most of the work, no two pieces of the line may have the work of a share:
    then documents are cut into halves before they are lined up, or into quarters, and so on.
    """
    work, found = work or CausalWork(cu_seqlens), list[list[Share]]()
    longest = max((stop - start for start, stop in pairwise(cu_seqlens)), default=0)
    for halvings in range(max(_HALVINGS, (longest // _LEAST).bit_length()) + 1):
        found.append(list(_Line(cu_seqlens, max(longest >> halvings, 1), work).shares(cp_size)))
        mean = sum(share.work for share in found[-1]) / cp_size
        if _most(found[-1]) <= _EVEN * mean + work.most:  # or a row more
            break
    return min(found, key=_most)


def _most(shares: Sequence[Share]) -> int:
    return max(share.work for share in shares)


class _Line:
    """Parts of documents, of `longest` tokens at most, in the order of the keys that their rows see, most first."""

    def __init__(self, cu_seqlens: Sequence[int], longest: int, work: Work) -> None:
        self._of = work
        parts = list[range]()
        for start, stop in pairwise(cu_seqlens):
            count = -((start - stop) // longest)
            parts += (chunk(range(start, stop), index, count) for index in range(count))
        cells = [work.before(part.stop) - work.before(part.start) for part in parts]
        # By the mean number of keys that a row sees; of equal ones, the last of the stream first.
        line = sorted(zip(parts, cells, strict=True), key=lambda each: (-each[1] / len(each[0]), -each[0].start))
        self._parts = [part for part, _ in line]
        self._borders = [0, *accumulate(map(len, self._parts))]
        self._work = [0, *accumulate(cells for _, cells in line)]

    def shares(self, cp_size: int) -> Iterator[Share]:
        """The shares in rank order, each taken from what the ranks before have left."""
        first, last = 0, self._borders[-1]
        for ranks in range(cp_size, 0, -1):
            front, back = self._pieces(first, last, ranks)
            runs = joined_runs([*self._runs(*front), *self._runs(*back)])
            yield Share(tuple(runs), self._between(*front) + self._between(*back))
            first, last = front[1], back[0]

    def _pieces(self, first: int, last: int, ranks: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """What the next of `ranks` ranks takes from both ends of the rows from `first` to `last`."""
        tokens = (last - first) // ranks

        def work(ahead: int) -> int:
            return self._between(first, first + ahead) + self._between(last - (tokens - ahead), last)

        ahead = _nearest(work, tokens, self._between(first, last) / ranks)
        return (first, first + ahead), (last - (tokens - ahead), last)

    def _between(self, first: int, last: int) -> int:
        """The work of these rows of the line."""
        return self._before(last) - self._before(first)

    def _before(self, row: int) -> int:
        """The work of all rows before this one of the line."""
        index = bisect_right(self._borders, row) - 1
        if index == len(self._parts):
            return self._work[-1]
        stop = self._parts[index].stop
        return self._work[index] + self._of.before(stop) - self._of.before(stop - (row - self._borders[index]))

    def _runs(self, first: int, last: int) -> Iterator[range]:
        """The runs of the stream that are these rows of the line."""
        for index in range(bisect_right(self._borders, first) - 1, bisect_left(self._borders, last)):
            part, border = self._parts[index], self._borders[index]
            yield part[max(len(part) - (last - border), 0) : len(part) - max(first - border, 0)]


def _nearest(work: Callable[[int], int], most: int, wanted: float) -> int:
    """The number from 0 to `most` whose `work` is nearest to `wanted`, by bisection: `work` rises or falls throughout.

    Within a document it may go the other way; the result is then off by that, which the next ranks share.
    """
    sign = 1 if work(0) <= work(most) else -1
    above = bisect_left(range(most), sign * wanted, key=lambda rows: sign * work(rows))
    return min(above, max(above - 1, 0), key=lambda rows: abs(work(rows) - wanted))
