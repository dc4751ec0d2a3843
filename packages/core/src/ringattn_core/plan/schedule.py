"""Context-parallel attention as data: which tiles each rank computes, against whose keys, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.route import Route
from ringattn_core.plan.tile import Tile, Window

if TYPE_CHECKING:
    from ringattn_core.plan.columns import FullTiles, KeySlices
    from ringattn_core.plan.mask import Mask

_TILE, _PIECE, _STEP = 300, 200, 1000  # bytes that one takes, with its numbers


@dataclass(frozen=True, eq=False)
class Launch:
    """Tiles that one kernel call takes: the same window, no row twice, no column twice, in order of their rows."""

    tiles: tuple[Tile, ...] | FullTiles

    def __post_init__(self) -> None:
        if not isinstance(self.tiles, tuple):
            return  # Columns have checked themselves.
        window = self.tiles[0].window
        for before, after in pairwise(self.tiles):
            assert after.window == window, f"windows differ in one launch: {before} and {after}"
            assert before.q.stop <= after.q.start and before.k.stop <= after.k.start, f"{before} clashes with {after}"

    @property
    def window(self) -> Window:
        """FlashAttention's (left, right), aligned bottom-right; -1 is an open side."""
        return self.tiles[0].window

    @cached_property
    def rows(self) -> range:
        """The box around the launch's query rows; rows between its tiles may belong to none of them."""
        return range(self.tiles[0].q.start, self.tiles[-1].q.stop)

    @cached_property
    def columns(self) -> range:
        """The box around the launch's key columns."""
        return range(self.tiles[0].k.start, self.tiles[-1].k.stop)

    @cached_property
    def dense_rows(self) -> bool:
        """Does every row of the box belong to a tile?"""
        return sum(len(tile.q) for tile in self.tiles) == len(self.rows)

    @cached_property
    def dense_columns(self) -> bool:
        """Does every column of the box belong to a tile?"""
        return sum(len(tile.k) for tile in self.tiles) == len(self.columns)

    @cached_property
    def area(self) -> int:
        """Live cells, of one head."""
        return sum(tile.area for tile in self.tiles)


@dataclass(frozen=True, slots=True)
class KeySlice:
    """Rows of a source's shard, and where they lie in the key buffer of a step."""

    source: int
    rows: range
    offset: int

    @property
    def columns(self) -> range:
        """The place of the rows in the step's key buffer."""
        return range(self.offset, self.offset + len(self.rows))


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Step:
    """What a rank computes with the keys of `sources`.

    Of one source the buffer is the shard as it is stored there, up to the last row that is needed. Of several, only the
    rows that are needed lie in it, side by side in the order of their positions, so that what can be one tile is one
    tile. `key_slices` are the rows needed either way: all that a one-sided transport has to fetch. `destinations` are
    the ranks that have this one among their sources on the same hop.
    """

    hop: int
    sources: tuple[int, ...]
    destinations: tuple[int, ...]
    key_slices: tuple[KeySlice, ...] | KeySlices
    launches: tuple[Launch, ...]

    @property
    def area(self) -> int:
        """Live cells, of one head."""
        return sum(launch.area for launch in self.launches)

    @property
    def fetched(self) -> int:
        """Rows of keys that the step needs."""
        return sum(len(key_slice.rows) for key_slice in self.key_slices)


@dataclass(frozen=True, eq=False)
class Schedule:
    """One rank's part of an attention: `steps` in order, the same number and the same hops on every rank.

    `queries` and `keys` say who holds which tokens; `shard_size` is the most keys that a rank holds, the length of
    every shard that travels whole. `shifts` says, for all
    ranks alike, that hop h brings the keys of the rank h before: then neighbours can hand them on. `route` and `window`
    are what was planned for; of a schedule of a `mask`, that says what is live, and the borders only who holds what.
    """

    cp_rank: int
    cp_size: int
    shard_size: int
    steps: tuple[Step, ...]
    queries: Sharding
    keys: Sharding
    shifts: bool
    route: Route
    window: Window
    mask: Mask | None = None

    @cached_property
    def area(self) -> int:
        """Live cells that this rank computes, of one head."""
        return sum(step.area for step in self.steps)

    @cached_property
    def query_length(self) -> int:
        """Query tokens that this rank holds."""
        return self.queries.length(self.cp_rank)

    @cached_property
    def key_length(self) -> int:
        """Key tokens that this rank holds."""
        return self.keys.length(self.cp_rank)

    @property
    def size(self) -> int:
        """Bytes that the schedule takes and that a transport's indices for it do, roughly."""
        steps, borders = self.steps, {self.queries.cu_seqlens, self.keys.cu_seqlens}
        parts = sum(_bytes(step.key_slices, _PIECE) for step in steps)
        parts += sum(_bytes(launch.tiles, _TILE) for step in steps for launch in step.launches)
        parts += _TILE * len(self.mask.tiles) if self.mask else 0
        return parts + _STEP * len(self.steps) + 8 * self.keys.cu_seqlens[-1] + 40 * sum(map(len, borders))

    def buffer_length(self, step: Step) -> int:
        """Rows in the key buffer of a step, up to the last that is needed."""
        return step.key_slices[-1].columns.stop if step.key_slices else 0


def _bytes(parts: tuple[object, ...] | FullTiles | KeySlices, each: int) -> int:
    return each * len(parts) if isinstance(parts, tuple) else parts.bytes
