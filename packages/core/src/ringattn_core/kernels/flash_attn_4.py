"""FlashAttention-4 (package flash-attn-4), written in the CuTe DSL: the kernel of choice on Hopper and newer.

Tiles with gaps between them go in one launch without copies: its `cu_seqlens` are read as starts and its `seqused` as
lengths. It compiles itself at first use, some seconds for each variant.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

from torch import Tensor

from ringattn_core.kernels.lengths import varlen
from ringattn_core.kernels.limits import Limits
from ringattn_core.optional import is_installed
from ringattn_core.plan.schedule import Launch
from ringattn_core.run.kernel import Block, Grads, Kernel, Options, OutGrads, Queries
from ringattn_core.run.transport import KV

_LIMITS = Limits(generation="Hopper", longest_dim=128, other_dims=((192, 128), (256, 256)), lacks=("ALiBi", "dropout"))
_ONE_AT_A_TIME = Lock()  # Its compiler, which any call may start, is not safe under threads.


class FlashAttn4(Kernel):
    """bfloat16 and float16, any window, softcap, grouped heads; raises ImportError without the package."""

    name = "flash_attn_4"
    returns_input_dtype = True
    supports_out = True

    def __init__(self) -> None:
        # Only looked for, and imported by the first call: that takes seconds. A broken flash_attn raises here.
        if not (is_installed("flash_attn") and is_installed("flash_attn.cute")):
            raise ImportError("the package flash-attn-4 is not installed (pip install flash-attn-4)")

    def supports(self, launch: Launch, q: Tensor, kv: KV, options: Options) -> str | None:
        return _LIMITS.why_unsupported(q, kv.v, options)

    def forward(
        self, q: Tensor, kv: KV, launch: Launch, options: Options, out_block: Block | None = None
    ) -> tuple[Block, Tensor | None]:
        forward, _ = _functions()
        q, k, v = _box(q, launch.rows), *(_box(x, launch.columns) for x in kv)
        arguments = _arguments(launch, options) | {"return_lse": True}
        with _ONE_AT_A_TIME:
            if len(launch.tiles) == 1:
                outs = {} if out_block is None else {"out": out_block.out[None], "lse": out_block.lse[None]}
                out, lse, *_ = forward(q[None], k[None], v[None], **arguments, **outs)
                return out_block or Block(out[0], lse[0]), None
            outs = {} if out_block is None else out_block._asdict()
            out, lse, *_ = forward(q, k, v, **arguments, **varlen(options.plan_on(q.device), launch)._asdict(), **outs)
            return out_block or Block(out, lse), None

    def backward(
        self, queries: Queries, kv: KV, launch: Launch, options: Options, rng_state: Tensor | None, out_grads: OutGrads
    ) -> Grads:
        _, backward = _functions()
        rows = launch.rows
        q, out, dout = (_box(x, rows) for x in (queries.q, queries.out, queries.dout))
        lse = queries.lse[:, rows.start : rows.stop].contiguous()
        k, v = (_box(x, launch.columns) for x in kv)
        arguments = _arguments(launch, options) | {"deterministic": options.deterministic}
        given = {name: x for name, x in out_grads._asdict().items() if x is not None}
        with _ONE_AT_A_TIME:
            if len(launch.tiles) == 1:
                given = {name: x[None] for name, x in given.items()}
                grads = backward(q[None], k[None], v[None], out[None], dout[None], lse[None], **arguments, **given)
                grads = [grad[0] for grad in grads[:3]]
            else:
                lengths = varlen(options.plan_on(q.device), launch)._asdict()
                grads = backward(q, k, v, out, dout, lse, **arguments, **lengths, **given)[:3]
        return Grads(*(grad if x is None else x for grad, x in zip(grads, out_grads, strict=True)))


@cache
def _functions() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd

    return _flash_attn_fwd, _flash_attn_bwd


def _arguments(launch: Launch, options: Options) -> dict[str, Any]:
    left, right = (None if side < 0 else side for side in launch.window)
    return {
        "softmax_scale": options.softmax_scale,
        "softcap": options.softcap,
        "window_size_left": left,
        "window_size_right": right,
    }


def _box(x: Tensor, box: range) -> Tensor:
    return x[box.start : box.stop]
