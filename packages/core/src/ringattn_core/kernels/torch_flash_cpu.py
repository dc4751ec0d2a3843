"""PyTorch's own flash attention, as its CPU build has it: causal and full tiles, without options.

`aten::_scaled_dot_product_flash_attention_for_cpu` returns the log-sum-exp. Its backward uses the out and lse that it
is given, those over all keys, so that the gradients of the blocks add up to those of the whole. Its causal mask is
aligned to the top left, so a tile with more keys than queries goes in two parts: the keys that all queries see, and a
square.

Where a row has fewer keys than a vector register has lanes, numbers that are not finite become finite (0 for a query
of NaN), and its causal mask multiplies them by 0. The reference kernel computes the tiles that hold such numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ringattn_core.kernels.finite import finite
from ringattn_core.kernels.limits import Limits
from ringattn_core.kernels.reference import Reference
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import CAUSAL, FULL, Tile
from ringattn_core.run.kernel import NO_OUT_GRADS, Block, Grads, Kernel, Options, OutGrads, Queries, accumulator_dtype
from ringattn_core.run.transport import KV

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
_REFERENCE = Reference()
_LIMITS = Limits(
    generation=None,
    dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    longest_dim=None,
    lacks=("softcap", "ALiBi", "dropout"),
)


class TorchFlashCpu(Kernel):
    """float64 to 16 bits, causal and full tiles, grouped heads; gradients come in the accumulator's dtype."""

    name = "torch_flash"

    def supports(self, launch: Launch, q: Tensor, kv: KV, options: Options) -> str | None:
        if (why := _LIMITS.why_unsupported(q, kv.v, options)) is not None:
            return why
        if launch.window not in (FULL, CAUSAL):
            return f"it has causal and full masks only and a launch needs the window {launch.window}"
        return None

    def forward(
        self, q: Tensor, kv: KV, launch: Launch, options: Options, out_block: Block | None = None
    ) -> tuple[Block, Tensor | None]:
        blocks = [_attend(q, kv, tile, options) for tile in launch.tiles]
        if len(blocks) == 1:
            return blocks[0], None
        out = q.new_empty((len(launch.rows), *q.shape[1:]), dtype=accumulator_dtype(q.dtype))
        lse = out.new_empty((q.shape[1], len(launch.rows)))
        for tile, block in zip(launch.tiles, blocks, strict=True):
            at = _slice(tile.q, launch.rows.start)
            out[at], lse[:, at] = block
        return Block(out, lse), None

    def backward(
        self, queries: Queries, kv: KV, launch: Launch, options: Options, rng_state: Tensor | None, out_grads: OutGrads
    ) -> Grads:
        if len(launch.tiles) == 1:
            return _pull_back(queries, kv, launch.tiles[0], options)
        dtype = accumulator_dtype(kv.k.dtype)
        dq = queries.q.new_empty((len(launch.rows), *queries.q.shape[1:]), dtype=dtype)
        dk, dv = (x.new_empty((len(launch.columns), *x.shape[1:]), dtype=dtype) for x in kv)
        for tile in launch.tiles:
            within = _slice(tile.k, launch.columns.start)
            dq[_slice(tile.q, launch.rows.start)], dk[within], dv[within] = _pull_back(queries, kv, tile, options)
        return Grads(dq, dk, dv)


class _Part(NamedTuple):
    """What one call computes: a full rectangle or a causal square."""

    q: range
    k: range
    causal: bool


def _parts(tile: Tile) -> list[_Part]:
    if tile.window == FULL:
        return [_Part(tile.q, tile.k, causal=False)]
    seen, square = tile.k[: -len(tile.q)], tile.k[-len(tile.q) :]
    return [*([_Part(tile.q, seen, causal=False)] if seen else []), _Part(tile.q, square, causal=True)]


def _attend(q: Tensor, kv: KV, tile: Tile, options: Options) -> Block:
    """The block of one tile."""
    columns = _slice(tile.k)
    if not finite([q[_slice(tile.q)]], [x[columns] for x in kv], options.softmax_scale):
        return _REFERENCE.forward(q, kv, Launch((tile,)), options)[0]
    block: Block | None = None
    for part in _parts(tile):
        queries = _grouped(q[_slice(part.q)], kv.k)
        keys, values = (_shared(x[_slice(part.k)], queries) for x in kv)
        out, lse = _FORWARD(queries, keys, values, 0.0, part.causal, scale=options.softmax_scale)
        found = Block(_ungrouped(out), lse.flatten(0, 1))
        block = found if block is None else _merged(block, found)
    assert block is not None
    return block


def _pull_back(queries: Queries, kv: KV, tile: Tile, options: Options) -> Grads:
    """The gradients of one tile."""
    rows, columns = _slice(tile.q), _slice(tile.k)
    of_rows = [queries.q[rows], queries.out[rows], queries.dout[rows], queries.lse.T[rows]]
    if not finite(of_rows, [x[columns] for x in kv], options.softmax_scale):
        return _REFERENCE.backward(queries.with_delta(), kv, Launch((tile,)), options, None, NO_OUT_GRADS)
    dtype = accumulator_dtype(kv.k.dtype)
    dq = queries.q.new_zeros((len(tile.q), *queries.q.shape[1:]), dtype=dtype)
    dk, dv = (x.new_empty((len(tile.k), *x.shape[1:]), dtype=dtype) for x in kv)
    q, out, dout = (_grouped(x[rows], kv.k) for x in (queries.q, queries.out, queries.dout))
    lse = queries.lse[:, rows].reshape(kv.k.shape[1], -1, len(tile.q))
    for part in _parts(tile):
        keys, values = (_shared(x[_slice(part.k)], q) for x in kv)
        grads = _BACKWARD(dout, q, keys, values, out, lse, 0.0, part.causal, scale=options.softmax_scale)
        dq += _ungrouped(grads[0])
        within = _slice(part.k, tile.k.start)
        dk[within], dv[within] = (x.sum(dim=1, dtype=dtype).transpose(0, 1) for x in grads[1:])
    return Grads(dq, dk, dv)


def _merged(a: Block, b: Block) -> Block:
    """Two blocks of the same rows, over different keys, as one; every row has a live key in both."""
    lse = torch.logaddexp(a.lse, b.lse)
    out_a, out_b = (block.out * torch.exp(block.lse - lse).T.unsqueeze(-1) for block in (a, b))
    return Block(out_a + out_b, lse)


def _slice(part: range, start: int = 0) -> slice:
    return slice(part.start - start, part.stop - start)


# Grouped-query attention without copies: kv heads are the batch, and the query heads of each share its keys.


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """(rows, num_heads, head_dim) -> (num_kv_heads, heads of a group, rows, head_dim)."""
    return _dense(x).reshape(len(x), k.shape[1], -1, x.shape[2]).permute(1, 2, 0, 3)


def _ungrouped(x: Tensor) -> Tensor:
    """The way back."""
    return x.permute(2, 0, 1, 3).flatten(1, 2)


def _shared(x: Tensor, q: Tensor) -> Tensor:
    """(columns, num_kv_heads, head_dim) -> (num_kv_heads, heads of a group, columns, head_dim), q being `_grouped`."""
    return _dense(x).transpose(0, 1).unsqueeze(1).expand(-1, q.shape[1], -1, -1)


def _dense(x: Tensor) -> Tensor:
    """The operator takes any strides but that of the last dimension: if it is not 1, results are silently wrong."""
    return x if x.stride(-1) == 1 else x.contiguous()
