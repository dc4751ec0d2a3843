"""What a layer's queries see, whatever the batch: a pattern.

A pattern is a band, chunks, blocks, or what all or any of several patterns let see. Most are one band, which attention
takes as a window; others become a `Mask` of each row of a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, groupby, pairwise
from operator import and_, or_

from torch import Tensor

from ringattn import masks
from ringattn_core.errors import UnsupportedError
from ringattn_core.plan.mask import Mask, disjoint_mask
from ringattn_core.plan.read_mask import MAX_TILES
from ringattn_core.plan.tile import FULL, Tile, Window


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    number: which row. lengths: of its sequences, padding among them, end to end. starts: the position of the first
    token of each, which is 0 unless a packed batch says otherwise.
    """

    number: int
    lengths: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Band:
    """A query sees `window` = (left, right) tokens around itself; -1 is an open side."""

    window: Window

    def mask(self, row: Row) -> Mask:
        """The mask of a row, as of every pattern: sequences do not see each other."""
        return masks.packed(row.lengths, window=self.window)


@dataclass(frozen=True)
class Chunks:
    """A query sees the tokens of its sequence whose position, divided by `size`, gives the same whole number."""

    size: int

    def mask(self, row: Row) -> Mask:
        """The mask of a row."""
        chunks = list[int]()
        for length, start in zip(row.lengths, row.starts, strict=True):
            borders = range(self.size - start % self.size, length, self.size)
            chunks += [stop - first for first, stop in pairwise([0, *borders, length])]
        return masks.packed(chunks, window=FULL)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Tokens of a sequence with the same number in `ids`, (rows or 1, tokens), see each other; none where it is < 0."""

    ids: Tensor

    def mask(self, row: Row) -> Mask:
        """The mask of a row. Raises UnsupportedError for blocks in too many pieces."""
        ids = self.ids[row.number % len(self.ids)].tolist()
        tiles = list[Tile]()
        for start, stop in pairwise(accumulate(row.lengths, initial=0)):
            runs, place = defaultdict[int, list[range]](list), start
            for block, same in groupby(ids[start:stop]):
                run = range(place, place := place + sum(1 for _ in same))
                if block >= 0:
                    runs[block].append(run)
            pieces = max(map(len, runs.values()), default=0)
            if pieces**2 > MAX_TILES:
                raise UnsupportedError(
                    f"A block of tokens that see each other lies in {pieces:,} pieces, which takes {pieces**2:,} "
                    f"tiles, more than {MAX_TILES:,}."
                )
            tiles += [Tile(q, k) for run in runs.values() for q in run for k in run]
        return disjoint_mask(tiles, sum(row.lengths), sum(row.lengths))


@dataclass(frozen=True, eq=False)
class Given:
    """A query sees what `masks` say, one for all rows of a batch or one for each."""

    masks: tuple[Mask, ...]

    def mask(self, row: Row) -> Mask:
        """The mask of a row."""
        return self.masks[row.number % len(self.masks)]


@dataclass(frozen=True, eq=False)
class Both:
    """A query sees what all of several patterns let it see."""

    parts: tuple[Pattern, ...]

    def mask(self, row: Row) -> Mask:
        """The mask of a row."""
        return reduce(and_, (part.mask(row) for part in self.parts))


@dataclass(frozen=True, eq=False)
class Either:
    """A query sees what any of several patterns lets it see."""

    parts: tuple[Pattern, ...]

    def mask(self, row: Row) -> Mask:
        """The mask of a row."""
        return reduce(or_, (part.mask(row) for part in self.parts))


Pattern = Band | Chunks | Blocks | Given | Both | Either


def both(patterns: Iterable[Pattern]) -> Pattern:
    """What all of these let see: one pattern where they are bands."""
    bands, others = _parted(patterns)
    sides = zip(*(band.window for band in bands), strict=True)
    narrow = [min((side for side in each if side >= 0), default=-1) for each in sides]
    # An open band takes nothing away from another pattern.
    kept = [Band((narrow[0], narrow[1]))] if narrow and (not others or tuple(narrow) != FULL) else []
    return _one(kept + others, Both)


def either(patterns: Iterable[Pattern]) -> Pattern:
    """What any of these lets see: one pattern where they are bands, which all have the diagonal."""
    bands, others = _parted(patterns)
    sides = zip(*(band.window for band in bands), strict=True)
    wide = [-1 if min(each) < 0 else max(each) for each in sides]
    kept = [Band((wide[0], wide[1]))] if wide else []
    return kept[0] if kept and kept[0].window == FULL else _one(kept + others, Either)


def without_blocks(pattern: Pattern) -> Pattern:
    """What a token sees that is in no block."""
    if isinstance(pattern, Both):
        return both(map(without_blocks, pattern.parts))
    if isinstance(pattern, Either):
        return either(without_blocks(part) for part in pattern.parts if not isinstance(part, Blocks))
    return pattern


def blocks(pattern: Pattern) -> Iterator[Blocks]:
    """All blocks in a pattern."""
    if isinstance(pattern, Both | Either):
        for part in pattern.parts:
            yield from blocks(part)
    elif isinstance(pattern, Blocks):
        yield pattern


def _parted(patterns: Iterable[Pattern]) -> tuple[list[Band], list[Pattern]]:
    given = list(patterns)
    return [each for each in given if isinstance(each, Band)], [each for each in given if not isinstance(each, Band)]


def _one(parts: list[Pattern], kind: type[Both] | type[Either]) -> Pattern:
    return parts[0] if len(parts) == 1 else kind(tuple(parts))
