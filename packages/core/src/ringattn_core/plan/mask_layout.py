"""The layout `balanced` for a mask: equal tokens for each rank, and equal live cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate

from ringattn_core.plan.balance import deal
from ringattn_core.plan.layout import Layout, PackedLayout, Runs, balanced, packed
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.memo import shared
from ringattn_core.plan.row_work import RowWork
from ringattn_core.plan.tile import Tile


def layout_for(layout: Layout, masks: Mask | Sequence[Mask]) -> Layout:
    """The layout with which ranks share tokens under a mask: `balanced` becomes `balanced_for` it, others stay.

    Of a batch with a mask for each row, all rows are divided alike, so `masks` are those of all rows.
    """
    given = (masks,) if isinstance(masks, Mask) else tuple(masks)
    return balanced_for(given) if packed(layout).by_work else layout


def layout_of_keys(layout: Layout, mask: Mask) -> Layout:
    """The layout of the keys: that of the queries; of a cross attention `balanced`, because keys have no work."""
    other = isinstance(layout, _Balanced) and mask.num_keys != mask.num_queries
    return balanced if other else layout


@shared
def balanced_for(masks: tuple[Mask, ...]) -> PackedLayout:
    """Equal tokens for each rank, and equal live cells of these masks together: both to a row.

    Parts of the stream that see nothing of each other, such as packed documents, mostly lie whole on a rank. The layout
    divides streams as long as the masks, and raises ValueError for another length, and for masks whose lengths differ.

    >>> from ringattn_core.plan import masks
    >>> images = masks.causal(16) | masks.two_way([range(4, 8)], 16)
    >>> layout = balanced_for((images,))
    >>> [layout(range(16), rank, 2) for rank in range(2)]
    [(range(0, 4), range(12, 16)), (range(4, 12),)]
    """
    return _Balanced(masks)


class _Balanced(PackedLayout):
    def __init__(self, masks: tuple[Mask, ...]) -> None:
        lengths = {mask.num_queries for mask in masks}
        if len(lengths) != 1:
            raise ValueError(f"Masks that share a layout must have the same number of queries, got {sorted(lengths)}.")
        (length,) = lengths

        @lru_cache(8)
        def dealt(cp_size: int) -> list[Runs]:
            tiles = [tile for mask in masks for tile in mask.tiles]
            return [share.runs for share in deal(_borders(tiles, length), cp_size, RowWork(tiles, length))]

        def runs(borders: Sequence[int], cp_rank: int, cp_size: int) -> Runs:
            start = borders[0]
            if start == borders[-1]:  # a batch without rows
                return ()
            if borders[-1] - start != length:
                raise ValueError(
                    f"This layout balances masks of {length} tokens, and cannot divide {borders[-1] - start}."
                )
            return tuple(range(start + run.start, start + run.stop) for run in dealt(cp_size)[cp_rank])

        def divide(extent: range, cp_rank: int, cp_size: int) -> Runs:
            return runs((extent.start, extent.stop), cp_rank, cp_size)

        divide.__name__ = f"balanced_for({masks!r})"
        super().__init__(divide, runs=runs, built_in=True)
        self._masks = masks

    def __reduce__(self) -> tuple[Callable[..., Layout], tuple[object, ...]]:
        # There is one layout of the same masks, by which plans are looked up, also where it is unpickled.
        return layout_for, (balanced, self._masks)


def _borders(tiles: Iterable[Tile], length: int) -> list[int]:
    """The borders of the smallest parts of a stream that see nothing of each other."""
    reaches = sorted((min(tile.q.start, tile.k.start), max(tile.q.stop, tile.k.stop)) for tile in tiles)
    ends = list(accumulate((stop for _, stop in reaches), max, initial=0))  # of all tiles before each
    parts = [
        0,
        *(border for (start, _), end in zip(reaches, ends, strict=False) if start >= end for border in (end, start)),
    ]
    return sorted({border for border in (*parts, ends[-1], length) if border <= length})
