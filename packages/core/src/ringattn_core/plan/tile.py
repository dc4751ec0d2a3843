"""A rectangle of the attention matrix with a diagonal band of live cells: the unit every kernel understands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FAR = 1 << 60  # beyond any token: an open side of a band

Window = tuple[int, int]
"""FlashAttention's (left, right), aligned to the bottom-right corner; -1 is an open side."""

FULL: Window = (-1, -1)
CAUSAL: Window = (-1, 0)


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows `q` against columns `k` (local indices); a cell is live if low <= column - row <= high.

    A mask in positions, -left <= key - query <= right, is such a band whatever the layout: for queries q0 + i*t and
    keys k0 + j*t, high = (right + q0 - k0) // t and low = -((left - q0 + k0) // t).
    """

    q: range
    k: range
    low: int = -FAR
    high: int = FAR

    @property
    def window(self) -> Window:
        """The band as FlashAttention states it: from the bottom-right diagonal, -1 for an open side."""
        if self.low == -FAR and self.high == FAR:
            return FULL
        corner = self.k.stop - self.q.stop
        left = -1 if self.low <= self.k.start - self.q.stop + 1 else corner - self.low
        right = -1 if self.high >= self.k.stop - 1 - self.q.start else self.high - corner
        return left, right

    @property
    def area(self) -> int:
        """How many cells are live."""
        if self.low == -FAR and self.high == FAR:
            return len(self.q) * len(self.k)
        return self._below(self.high) - self._below(self.low - 1)

    def _below(self, high: int) -> int:
        """How many cells have column - row <= high: a triangle without its parts outside the rectangle."""
        rows, columns = len(self.q), len(self.k)
        d = high + self.q.start - self.k.start
        return triangle(rows + d) - triangle(d) - triangle(rows + d - columns) + triangle(d - columns)

    def trim(self) -> Tile | None:
        """Drop the outer rows and columns without a live cell; None if no cell is live.

        What remains has a `window` whose sides are 0 or more, or open: any kernel that takes a window takes the tile.
        """
        if self.low == -FAR and self.high == FAR and self.q and self.k:
            return self
        q = range(max(self.q.start, self.k.start - self.high), min(self.q.stop, self.k.stop - self.low))
        k = range(max(self.k.start, q.start + self.low), min(self.k.stop, q.stop + self.high))
        if not q or not k or self.low > self.high:
            return None
        low = -FAR if self.low <= k.start - q.stop + 1 else self.low
        high = FAR if self.high >= k.stop - 1 - q.start else self.high
        return Tile(q, k, low, high)


def triangle(n: int) -> int:
    """Cells of a causal mask of n rows; none of fewer than one."""
    return n * (n + 1) // 2 if n > 0 else 0


def chunk(extent: range, index: int, count: int) -> range:
    """The `index`-th of `count` parts of `extent`, whose lengths differ by one token at most."""
    size = len(extent)
    return extent[index * size // count : (index + 1) * size // count]


def joined_runs(parts: Iterable[range]) -> list[range]:
    """Ranges sorted by their starts, with neighbours joined and empty ones left out."""
    found = list[range]()
    for part in sorted(filter(len, parts), key=lambda part: part.start):
        start = found.pop().start if found and found[-1].stop == part.start else part.start
        found.append(range(start, part.stop))
    return found
