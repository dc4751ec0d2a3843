"""The reference kernel: exact attention in plain torch, for any device and float dtype, in bounded memory.

It computes in float32 (float64 for float64 inputs), a block of rows at a time, and can do all that the options say. Its
dropout mask depends on the seed and on the cell's own head and global positions only, so it is the same for every
layout and number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ringattn_core.kernels.finite import finite
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import FAR, Tile
from ringattn_core.run.kernel import Block, Grads, Kernel, Options, OutGrads, Queries, accumulator_dtype
from ringattn_core.run.transport import KV

SCORES = 1 << 24  # scores held at once, over all heads: the bound on memory


class Reference(Kernel):
    """Plain torch; the kernel that every other is compared with."""

    name = "reference"
    accepts_delta = True
    speed = None

    def supports(self, launch: Launch, q: Tensor, kv: KV, options: Options) -> str | None:
        return None

    def forward(
        self, q: Tensor, kv: KV, launch: Launch, options: Options, out_block: Block | None = None
    ) -> tuple[Block, Tensor | None]:
        dtype = accumulator_dtype(q.dtype)
        rows = launch.rows
        k, v = kv
        out = q.new_zeros((len(rows), q.shape[1], v.shape[2]), dtype=dtype)
        lse = q.new_full((q.shape[1], len(rows)), -torch.inf, dtype=dtype)
        for cells in _cells(launch, (q,), kv, options):
            scores, _ = _scores(q, k, cells, options)
            block_lse = torch.logsumexp(scores, dim=-1)
            # Scores that are all -inf weigh 0: the row may have finite ones in other launches.
            divisor = block_lse.masked_fill(block_lse == -torch.inf, 0.0).unsqueeze(-1)
            weights = torch.exp(scores - divisor) * _kept(scores, cells, options)
            at = slice(cells.q.start - rows.start, cells.q.stop - rows.start)
            out[at] = _ungrouped(_grouped(weights, v) @ _columns(v, cells), len(cells.q))
            lse[:, at] = block_lse
        return Block(out, lse), None

    def backward(
        self, queries: Queries, kv: KV, launch: Launch, options: Options, rng_state: Tensor | None, out_grads: OutGrads
    ) -> Grads:
        k, v = kv
        q, delta, dtype = queries.q, queries.delta, accumulator_dtype(queries.q.dtype)
        assert delta is not None, "the executor computes delta for kernels that take it"
        dq = q.new_zeros((len(launch.rows), *q.shape[1:]), dtype=dtype)
        dk, dv = (x.new_zeros((len(launch.columns), *x.shape[1:]), dtype=dtype) for x in kv)
        for cells in _cells(launch, (q, queries.dout, queries.lse.T, delta.T), kv, options):
            rows = slice(cells.q.start, cells.q.stop)
            scores, slope = _scores(q, k, cells, options)
            weights = torch.exp(scores - queries.lse[:, rows].unsqueeze(-1))
            kept = _kept(scores, cells, options)
            dout = _rows(queries.dout[rows], k.shape[1])
            dweights = (dout @ _columns(v, cells).mT).view_as(scores) * kept
            dscores = weights * (dweights - delta[:, rows].unsqueeze(-1)) * slope * options.softmax_scale
            at = slice(cells.q.start - launch.rows.start, cells.q.stop - launch.rows.start)
            within = slice(cells.k.start - launch.columns.start, cells.k.stop - launch.columns.start)
            dq[at] = _ungrouped(_grouped(dscores, k) @ _columns(k, cells), len(cells.q))
            dk[within] += (_grouped(dscores, k).mT @ _rows(q[rows], k.shape[1])).transpose(0, 1)
            dv[within] += (_grouped(weights * kept, k).mT @ dout).transpose(0, 1)
        return Grads(dq, dk, dv)


def _cells(launch: Launch, rows: Sequence[Tensor], columns: Sequence[Tensor], options: Options) -> Iterator[Tile]:
    """The launch's tiles cut into blocks of rows, each with the columns that live there.

    A block of one row has no dead cell. So in a tile with dead cells what is not finite in `rows` and `columns`, q
    being the first, is computed row by row: it reaches the rows that see it and no others.
    """
    for tile in launch.tiles:
        height = max(1, SCORES // (rows[0].shape[1] * len(tile.k)))
        if _banded(tile) and not finite(
            [_part(x, tile.q) for x in rows], [_part(x, tile.k) for x in columns], options.softmax_scale
        ):
            height = 1
        for start in range(tile.q.start, tile.q.stop, height):
            cells = Tile(range(start, min(start + height, tile.q.stop)), tile.k, tile.low, tile.high).trim()
            assert cells is not None, f"{tile} has rows without a live cell"
            yield cells


def _banded(cells: Tile) -> bool:
    return cells.low > -FAR or cells.high < FAR


def _part(x: Tensor, rows: range) -> Tensor:
    return x[rows.start : rows.stop]


def _scores(q: Tensor, k: Tensor, cells: Tile, options: Options) -> tuple[Tensor, Tensor | float]:
    """The scores (num_heads, rows, columns), -inf where a cell is dead, and their derivative by the scaled products.

    The derivative is not 1 under a softcap.
    """
    rows = q[cells.q.start : cells.q.stop]
    scores = (_rows(rows, k.shape[1]) @ _columns(k, cells).mT).view(q.shape[1], len(cells.q), len(cells.k))
    scores = scores * options.softmax_scale
    slope: Tensor | float = 1.0
    if options.softcap > 0:
        squashed = torch.tanh(scores / options.softcap)
        scores, slope = squashed * options.softcap, 1.0 - squashed * squashed
    if options.alibi_slopes is not None:
        scores = scores - _alibi(cells, options, scores.dtype)
    if _banded(cells):
        i = torch.arange(cells.q.start, cells.q.stop, device=q.device)
        j = torch.arange(cells.k.start, cells.k.stop, device=q.device)
        apart = j[None, :] - i[:, None]
        scores = scores.masked_fill((apart < cells.low) | (apart > cells.high), -torch.inf)
    return scores, slope


def _alibi(cells: Tile, options: Options, dtype: torch.dtype) -> Tensor:
    """slope * distance in positions (Press et al. 2021, arXiv:2108.12409), (num_heads, rows, columns)."""
    assert options.positions is not None and options.alibi_slopes is not None
    rows = slice(cells.q.start, cells.q.stop)
    q, k = options.positions.q[rows], options.positions.k[cells.k.start : cells.k.stop]
    slopes = options.alibi_slopes.to(dtype)
    slopes = slopes[rows].T if slopes.dim() == 2 else slopes[:, None]
    return slopes[:, :, None] * (q[:, None] - k[None, :]).abs()


def _kept(scores: Tensor, cells: Tile, options: Options) -> Tensor | float:
    """What dropout leaves of every cell: 0, or 1 / (1 - p)."""
    if options.dropout_p == 0:
        return 1.0
    assert options.positions is not None
    q = options.positions.q[cells.q.start : cells.q.stop]
    k = options.positions.k[cells.k.start : cells.k.stop]
    heads = torch.arange(scores.shape[0], device=scores.device) + options.first_head
    # A chain of mixes (splitmix64, Steele et al. 2014): a cell has the same number, wherever it is computed. The
    # seed is mixed by itself, so that neighbouring seeds do not share masks between neighbouring heads.
    heads = _mix(_mix(torch.full_like(heads, options.seed)) + heads)
    number = _mix(_mix(heads[:, None] + q)[:, :, None] + k)
    uniform = (number >> 11 & (1 << 53) - 1).to(torch.float64) * 2.0**-53
    return (uniform >= options.dropout_p).to(scores.dtype) / (1.0 - options.dropout_p)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64, with its logical shifts spelled out."""
    x = x + -0x61C8864680B583EB
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)


# Grouped-query attention without copies: the query heads of one kv head lie below each other, as rows of one product.


def _rows(x: Tensor, num_kv_heads: int) -> Tensor:
    """(rows, num_heads, dim) -> (num_kv_heads, heads of a group * rows, dim), in the accumulator's dtype."""
    rows, num_heads, dim = x.shape
    x = x.to(accumulator_dtype(x.dtype)).reshape(rows, num_kv_heads, num_heads // num_kv_heads, dim)
    return x.permute(1, 2, 0, 3).reshape(num_kv_heads, -1, dim)


def _grouped(x: Tensor, like: Tensor) -> Tensor:
    """(num_heads, rows, columns) -> (num_kv_heads, heads of a group * rows, columns)."""
    return x.reshape(like.shape[1], -1, x.shape[2])


def _ungrouped(x: Tensor, rows: int) -> Tensor:
    """(num_kv_heads, heads of a group * rows, dim) -> (rows, num_heads, dim)."""
    return x.reshape(-1, rows, x.shape[2]).transpose(0, 1)


def _columns(x: Tensor, cells: Tile) -> Tensor:
    """The cells' keys or values: (num_kv_heads, columns, dim), in the accumulator's dtype."""
    part = x[cells.k.start : cells.k.stop]
    return part.to(accumulator_dtype(x.dtype)).transpose(0, 1)
