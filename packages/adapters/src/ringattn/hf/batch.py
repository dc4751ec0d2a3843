"""One batch spread over the ranks: the hook makes it from the model's arguments, and passes it to every layer."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ringattn.context_parallel import ContextParallel
from ringattn.hf.cache import ShardedCache
from ringattn.hf.mask_patterns import Row
from ringattn.hf.texts import Texts
from ringattn.unshard import lengths
from ringattn_core.plan.layout import Layout, Sharding
from ringattn_core.plan.memo import shared
from ringattn_core.plan.tile import chunk

if TYPE_CHECKING:
    from ringattn.hf.logits import Kept
    from ringattn.hf.seen import Seen

KEYWORD = "ringattn_batch"  # under this name the batch travels through the model's keyword arguments


class ShardedBatch:
    """How a batch of `rows` x `tokens` is divided.

    row: divides one row. All rows are divided in the same way, so that a rank's part is a rectangle.
    stream: divides the concatenated rows, with the borders of all sequences in them, for the attention.
    tokens: the number of tokens in a row of the caller. A row with fewer tokens than ranks is padded.
    targets: the number of targets in a row of the caller: tokens - 1 if the model was to shift the labels.
    cache: where the keys are kept if the batch is a prompt.
    mask, position_ids: as the model got them, (rows, tokens) or None, for modules other than attention.
    entry: the module whose call was sharded and whose outputs are gathered.
    """

    # No dataclass: with mixed precision FSDP2 takes those among a layer's arguments apart, and makes new ones.
    def __init__(
        self,
        row: ContextParallel,
        stream: ContextParallel,
        rows: int,
        tokens: int,
        targets: int,
        cache: ShardedCache | None = None,
    ) -> None:
        self.row, self.stream, self.rows, self.tokens = row, stream, rows, tokens
        self.targets, self.cache = targets, cache
        self.kept: Kept | None = None  # how whole logits are made, in calls where every rank gets them
        self.entry: nn.Module | None = None
        self.was_used = False  # has any layer called the attention function with this batch?
        self.seen: Seen | None = None  # by all layers, where the user or a model around the text tower says it
        self.mask: Tensor | None = None
        self.position_ids: Tensor | None = None

    @property
    def local(self) -> int:
        """The number of tokens of a row that this rank holds."""
        return self._division.length(self.row.cp_rank)

    @property
    def length(self) -> int:
        """The number of tokens in a row, padding included."""
        return self._division.cu_seqlens[-1]

    @property
    def _division(self) -> Sharding:
        assert self.row.cu_seqlens is not None, "made by `divide`"
        return self.row.division(int(self.row.cu_seqlens[-1]))

    def positions(self, rank: int) -> list[int]:
        """The positions in a row of a rank's tokens, in the rank's order."""
        return self._division.positions(rank)

    @cached_property
    def texts(self) -> Texts | None:
        """The sequences of a packed batch, one to a row; None if no row has more than one."""
        borders = self.stream.cu_seqlens
        assert borders is not None, "made by `divide`"
        return Texts.of(borders, self.rows, self.length, self.tokens, self.mask)

    @cached_property
    def contents(self) -> list[Row]:
        """The sequences of each row. In packed rows chunks are counted by the positions that the model got."""
        assert self.stream.cu_seqlens is not None, "made by `divide`"
        borders = [[0] for _ in range(self.rows)]
        for end in map(int, self.stream.cu_seqlens):
            if end > 0:
                number, last = divmod(end - 1, self.length)
                borders[number].append(last + 1)
        told = self.position_ids
        packed = self.mask is None and told is not None and told.dim() == 2 and max(map(len, borders)) > 2
        starts = [[0] * (len(row) - 1) for row in borders]
        if packed and told is not None:
            positions = told.expand(self.rows, -1).tolist()
            starts = [
                [row[start] if start < self.tokens else 0 for start in begins[:-1]]
                for row, begins in zip(positions, borders, strict=True)
            ]
        sequences = [tuple(stop - start for start, stop in pairwise(row)) for row in borders]
        return [Row(number, sequences[number], tuple(starts[number])) for number in range(self.rows)]

    def whole_positions(self, device: torch.device) -> Tensor:
        """The position_ids of all tokens, (rows or 1, tokens): those that the model got, or 0, 1, 2, ..."""
        given = self.position_ids
        return torch.arange(self.tokens, device=device)[None] if given is None else given.view(-1, self.tokens)

    def place(self, position: int) -> tuple[int, int]:
        """The rank that holds a token of a row, and the token's local index there."""
        for rank in range(self.row.cp_size):
            for span in self._division.spans(rank):
                if position in span.positions:
                    return rank, span.offset + span.positions.index(position)
        raise IndexError(f"There is no token {position} in a row of {self.length}.")

    def shard(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's share of a whole tensor."""
        shard: Tensor = self.row.shard(x, dim=dim)
        return shard

    def unshard(self, x: Tensor, dim: int = 1) -> Tensor:
        """The whole tensor from all ranks' shares, without padding."""
        whole: Tensor = self.row.unshard(x, dim=dim)
        return whole.narrow(dim, 0, self.tokens)


def divide(
    cp: ContextParallel,
    borders: list[tuple[int, ...]],
    tokens: int,
    targets: int,
    cache: ShardedCache | None = None,
) -> ShardedBatch:
    """Divide rows with these borders of sequences.

    Layout "balanced" assigns most sequences of a packed row to one rank each. Other layouts divide each sequence of a
    packed row by itself, which balances its work, provided that this balances the number of tokens too; otherwise they
    divide the row as one sequence. Lengths need not be multiples of anything.
    """
    length = borders[0][-1]
    # Of a mask that the user gives, each call says which rows it is of: here it only balances the work.
    whole = replace(cp, cu_seqlens=(0, length))
    if len(borders) == 1:
        row = replace(cp, cu_seqlens=borders[0])
        if not _even(row, length):
            row = replace(row, per_sequence=False)
        return ShardedBatch(row, row, 1, tokens, targets, cache)
    ends = [place * length + border for place, row in enumerate(borders) for border in row[1:]]
    stream = replace(
        cp, mask=None, layout=_by_row(cp.token_layout, len(borders)), per_sequence=False, cu_seqlens=[0, *ends]
    )
    return ShardedBatch(whole, stream, len(borders), tokens, targets, cache)


def _even(row: ContextParallel, length: int) -> bool:
    """Does every rank hold about the same number of tokens? With many short sequences, remainders go to a few ranks."""
    held = lengths(row.division(length))
    return max(held) <= length / row.cp_size * 1.05 + 1 and min(held) > 0


@shared
def _by_row(layout: Layout, rows: int) -> Layout:
    """The layout that divides each of `rows` equal rows of a stream. It is shared: cached plans are found by it."""

    def by_row(extent: range, cp_rank: int, cp_size: int) -> tuple[range, ...]:
        return tuple(run for row in range(rows) for run in layout(chunk(extent, row, rows), cp_rank, cp_size))

    return by_row


def padded(x: Tensor, length: int, dim: int, value: float) -> Tensor:
    """x with `value` at its end along `dim`, up to `length`."""
    missing = length - x.shape[dim]
    if missing <= 0:
        return x
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat([x, x.new_full(shape, value)], dim=dim)
