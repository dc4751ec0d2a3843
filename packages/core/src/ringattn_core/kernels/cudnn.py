"""cuDNN's fused attention through PyTorch's operators.

Its causal mask is aligned to the top left, so only square causal tiles and full ones are the same thing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ringattn_core.kernels.lengths import same_shape
from ringattn_core.kernels.limits import Limits
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import CAUSAL, FULL
from ringattn_core.run.kernel import Block, Grads, Kernel, Options, OutGrads, Queries
from ringattn_core.run.transport import KV

_LIMITS = Limits(
    generation="Ampere",
    longest_dim=128,
    one_dim=False,
    lacks=("softcap", "ALiBi", "dropout", "deterministic backward"),
)


class CuDnn(Kernel):
    """bfloat16 and float16, causal and full tiles of one shape, grouped heads."""

    name = "cudnn"
    returns_input_dtype = True
    speed = (0.89, 0.89)  # 16,384 tokens, causal, on an H100 in November 2026

    def supports(self, launch: Launch, q: Tensor, kv: KV, options: Options) -> str | None:
        if (why := _LIMITS.why_unsupported(q, kv.v, options)) is not None:
            return why
        if not same_shape(launch):
            return "it takes tiles of one shape without gaps: packed sequences differ"
        if not (launch.window == FULL or (launch.window == CAUSAL and len(launch.rows) == len(launch.columns))):
            return f"its causal mask is aligned to the top left, so it cannot compute the window {launch.window}"
        return None

    def forward(
        self, q: Tensor, kv: KV, launch: Launch, options: Options, out_block: Block | None = None
    ) -> tuple[Block, Tensor | None]:
        tensors = _rows(launch, q), _columns(launch, kv.k), _columns(launch, kv.v)
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            *tensors, None, True, 0.0, launch.window == CAUSAL, False, scale=options.softmax_scale
        )
        return Block(_flat(out), lse.reshape(len(launch.tiles), q.shape[1], -1).transpose(0, 1).flatten(1)), None

    def backward(
        self, queries: Queries, kv: KV, launch: Launch, options: Options, rng_state: Tensor | None, out_grads: OutGrads
    ) -> Grads:
        dout, q, out = (_rows(launch, x) for x in (queries.dout, queries.q, queries.out))
        lse = queries.lse[:, launch.rows.start : launch.rows.stop].reshape(q.shape[1], len(launch.tiles), -1)
        unused = torch.empty(0, dtype=torch.int64, device=q.device)
        grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            dout,
            q,
            _columns(launch, kv.k),
            _columns(launch, kv.v),
            out,
            lse.transpose(0, 1).unsqueeze(-1).contiguous(),
            unused,
            unused,
            None,
            None,
            None,
            q.shape[2],
            len(launch.columns) // len(launch.tiles),
            0.0,
            launch.window == CAUSAL,
            scale=options.softmax_scale,
        )
        return Grads(*(_flat(grad) for grad in grads))


def _rows(launch: Launch, x: Tensor) -> Tensor:
    return _batch(launch, x[launch.rows.start : launch.rows.stop])


def _columns(launch: Launch, x: Tensor) -> Tensor:
    return _batch(launch, x[launch.columns.start : launch.columns.stop])


def _batch(launch: Launch, x: Tensor) -> Tensor:
    """(tokens, heads, dim) -> (tiles, heads, tokens of a tile, dim)"""
    return x.view(len(launch.tiles), -1, *x.shape[1:]).transpose(1, 2)


def _flat(x: Tensor) -> Tensor:
    """(tiles, heads, tokens of a tile, dim) -> (tokens, heads, dim)"""
    return x.transpose(1, 2).flatten(0, 1)
