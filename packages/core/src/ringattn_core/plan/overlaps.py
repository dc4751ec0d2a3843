"""Which tiles of two sets share a rectangle, by a sweep over the rows, and what is left of a tile without others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ringattn_core.plan.tile import Tile


def overlaps(first: Sequence[Tile], second: Sequence[Tile]) -> Iterator[tuple[int, int]]:
    """The pairs of indices whose rectangles share rows and columns, in order of the row where both have begun.

    No tile is empty. A sweep: a tile meets those of the other set that have begun and not ended, so that tiles far
    apart never meet.
    """
    sets = first, second
    starts = [(tile.q.start, side, index) for side in (0, 1) for index, tile in enumerate(sets[side])]
    active: tuple[list[int], list[int]] = ([], [])
    for row, side, index in sorted(starts):
        tile, others = sets[side][index], sets[1 - side]
        # Tiles that have ended are dropped here: each is dropped once, and those that stay are looked at anyway.
        active[1 - side][:] = [other for other in active[1 - side] if others[other].q.stop > row]
        for other in active[1 - side]:
            k = others[other].k
            if k.start < tile.k.stop and tile.k.start < k.stop:
                yield (index, other) if side == 0 else (other, index)
        active[side].append(index)


def common(a: Tile, b: Tile) -> Tile | None:
    """What is live in both: a band of the rectangle they share."""
    q = range(max(a.q.start, b.q.start), min(a.q.stop, b.q.stop))
    k = range(max(a.k.start, b.k.start), min(a.k.stop, b.k.stop))
    return Tile(q, k, max(a.low, b.low), min(a.high, b.high)).trim() if q and k else None


def without(tile: Tile, others: Iterable[Tile]) -> list[Tile]:
    """What is live in `tile` and in none of the others.

    The others are taken in order of their first rows. What lies above that row is finished then, because no later one
    reaches it; so a causal tile without 10,000 squares on its diagonal is cut 10,000 times and not 10,000 ** 2.
    """
    finished, pending = list[Tile](), [tile]
    for other in sorted(others, key=lambda each: each.q.start):
        waiting = list[Tile]()
        for part in pending:
            if part.q.stop <= other.q.start:
                finished.append(part)
            else:
                waiting += difference(part, other)
        pending = waiting
    return finished + pending


def difference(a: Tile, b: Tile) -> list[Tile]:
    """What is live in a and not in b: up to four rectangles around what they share, and two bands within it.

    a a a a        . above . .
    a b b a   ->   l low/high r
    a a a a        . below . .
    """
    if common(a, b) is None:
        return [a]
    q = range(max(a.q.start, b.q.start), min(a.q.stop, b.q.stop))
    k = range(max(a.k.start, b.k.start), min(a.k.stop, b.k.stop))
    parts = (
        Tile(range(a.q.start, q.start), a.k, a.low, a.high),
        Tile(range(q.stop, a.q.stop), a.k, a.low, a.high),
        Tile(q, range(a.k.start, k.start), a.low, a.high),
        Tile(q, range(k.stop, a.k.stop), a.low, a.high),
        Tile(q, k, a.low, min(a.high, b.low - 1)),
        Tile(q, k, max(a.low, b.high + 1), a.high),
    )
    return [live for part in parts if part.q and part.k and (live := part.trim())]
