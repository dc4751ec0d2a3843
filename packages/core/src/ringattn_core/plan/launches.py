"""Which tiles share a kernel call, and what they need of one source's shard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ringattn_core.plan.schedule import KeySlice, Launch
from ringattn_core.plan.tile import Tile, Window


def only_slice(source: int, launches: Sequence[Launch]) -> tuple[KeySlice, ...]:
    """What is needed of one source's shard, which is the buffer: from the first row to the last."""
    if not launches:
        return ()
    start, stop = min(launch.columns.start for launch in launches), max(launch.columns.stop for launch in launches)
    return (KeySlice(source, range(start, stop), start),)


def batched(sequences: Iterable[list[Tile]]) -> list[Launch]:
    """Batch tiles of one window that follow each other in rows and columns: a tile joins the first launch it can."""
    batches: dict[Window, list[list[Tile]]] = defaultdict(list)
    for tiles in sequences:
        for tile in tiles:
            top, start, same = tile.q.start, tile.k.start, batches[tile.window]
            for batch in same:
                if batch[-1].q.stop <= top and batch[-1].k.stop <= start:
                    batch.append(tile)
                    break
            else:
                same.append([tile])
    return [Launch(tuple(batch)) for same in batches.values() for batch in same]
