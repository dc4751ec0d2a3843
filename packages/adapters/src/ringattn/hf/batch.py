"""One batch spread over the ranks: what the hook makes of the model's arguments, and what every layer gets to know."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ringattn.context_parallel import ContextParallel
from ringattn.hf.cache import ShardedCache
from ringattn.hf.texts import Texts
from ringattn_core.plan.layout import Layout, Sharding
from ringattn_core.plan.memo import shared
from ringattn_core.plan.tile import chunk

if TYPE_CHECKING:
    from ringattn.hf.logits import Kept

KEYWORD = "ringattn_batch"  # under this name the batch travels through the model's keyword arguments


class ShardedBatch:
    """How a batch of `rows` x `tokens` is divided.

    row: divides one row; every row is divided alike, so that a rank's shares are a rectangle.
    stream: divides the rows laid end to end, with the borders of all sequences in them: what attention needs.
    tokens: how many of a row's tokens are the user's; more are padding, where there are fewer than ranks.
    targets: how many targets a row has for the caller: one less than tokens, if the model was to shift the labels.
    cache: where the keys are to be kept, if the batch is a prompt.
    mask, position_ids: as the model got them, (rows, tokens) or None, for what else of the model needs them.
    entry: the module whose call was sharded, and whose outputs are to be gathered.
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
        self.kept: Kept | None = None  # what the logits are to become, where every rank gets them
        self.entry: nn.Module | None = None
        self.was_used = False  # has any layer's attention found its way here?
        self.mask: Tensor | None = None
        self.position_ids: Tensor | None = None

    @property
    def local(self) -> int:
        """How many of a row's tokens this rank holds."""
        return self._division.length(self.row.cp_rank)

    @property
    def length(self) -> int:
        """How many tokens a row has, padding included."""
        return self._division.cu_seqlens[-1]

    @property
    def _division(self) -> Sharding:
        assert self.row.cu_seqlens is not None, "made by `divide`"
        return self.row.division(int(self.row.cu_seqlens[-1]))

    def positions(self, rank: int) -> list[int]:
        """Where in a row the tokens of a rank stand, in the order in which it has them."""
        return self._division.positions(rank)

    @cached_property
    def texts(self) -> Texts | None:
        """The sequences of a packed batch as rows of their own; None where no row has more than one."""
        borders = self.stream.cu_seqlens
        assert borders is not None, "made by `divide`"
        return Texts.of(borders, self.rows, self.length, self.tokens, self.mask)

    def whole_positions(self, device: torch.device) -> Tensor:
        """The positions of all tokens of all ranks, (rows or 1, tokens), as the model got them or would count them."""
        given = self.position_ids
        return torch.arange(self.tokens, device=device)[None] if given is None else given.view(-1, self.tokens)

    def place(self, position: int) -> tuple[int, int]:
        """Which rank holds a token of a row, and as the how-manieth of its own."""
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
    """The division of rows with these borders of sequences.

    In layout "balanced" a packed row is dealt. In others each of its sequences is divided by itself, which balances the
    work of each, where that also balances the tokens; else the row is divided as a whole. No length has to divide by
    anything.
    """
    length = borders[0][-1]
    whole = replace(cp, cu_seqlens=(0, length))
    if len(borders) == 1:
        row = replace(cp, cu_seqlens=borders[0])
        if not _even(row, length):
            row = replace(row, per_sequence=False)
        return ShardedBatch(row, row, 1, tokens, targets, cache)
    ends = [place * length + border for place, row in enumerate(borders) for border in row[1:]]
    assert callable(cp.layout), "the name was looked up when cp was made"
    stream = replace(cp, layout=_by_row(cp.layout, len(borders)), per_sequence=False, cu_seqlens=[0, *ends])
    return ShardedBatch(whole, stream, len(borders), tokens, targets, cache)


def _even(row: ContextParallel, length: int) -> bool:
    """Does no rank hold much more than its share? Many short sequences would all leave their odd tokens to a few."""
    sharding = row.division(length)
    most = max(sharding.length(rank) for rank in range(row.cp_size))
    return most <= length / row.cp_size * 1.05 + 1 and min(map(sharding.length, range(row.cp_size))) > 0


@shared
def _by_row(layout: Layout, rows: int) -> Layout:
    """The layout that divides every one of so many equal rows of a stream: one object, for plans are found by it."""

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
