"""PyTorch's own FlashAttention-2 on NVIDIA GPUs: the default that needs nothing but torch.

Its operators take a window, packed lengths and dropout, whose random state they return and replay. They read lengths as
cumulative, so rows with gaps are gathered first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ringattn_core.kernels.gathered_launch import GatheredLaunch, gathered_launch
from ringattn_core.kernels.limits import Limits
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import CAUSAL, FULL
from ringattn_core.run.kernel import Block, Grads, Kernel, Options, OutGrads, Queries
from ringattn_core.run.transport import KV

LIMITS = Limits(generation="Ampere", lacks=("softcap", "ALiBi"))


class TorchFlashCuda(Kernel):
    """bfloat16 and float16, any window, dropout, grouped heads."""

    name = "torch_flash"
    returns_input_dtype = True

    def supports(self, launch: Launch, q: Tensor, kv: KV, options: Options) -> str | None:
        if (why := LIMITS.why_unsupported(q, kv.v, options)) is not None:
            return why
        if options.deterministic and not torch.are_deterministic_algorithms_enabled():
            return "its backward is deterministic only under torch.use_deterministic_algorithms(True)"
        return None

    def forward(
        self, q: Tensor, kv: KV, launch: Launch, options: Options, out_block: Block | None = None
    ) -> tuple[Block, Tensor | None]:
        part = gathered_launch(options.plan_on(q.device), launch)
        out, lse, rng_state, *_ = torch.ops.aten._flash_attention_forward(
            part.of_rows(q),
            part.of_columns(kv.k),
            part.of_columns(kv.v),
            *_lengths(part),
            options.dropout_p,
            launch.window == CAUSAL,
            False,
            **_arguments(launch, options),
        )
        return part.block(out, lse), rng_state if options.dropout_p > 0 else None

    def backward(
        self, queries: Queries, kv: KV, launch: Launch, options: Options, rng_state: Tensor | None, out_grads: OutGrads
    ) -> Grads:
        part = gathered_launch(options.plan_on(queries.q.device), launch)
        nothing = torch.empty(0, dtype=torch.int64, device=queries.q.device)
        grads = torch.ops.aten._flash_attention_backward(
            part.of_rows(queries.dout),
            part.of_rows(queries.q),
            part.of_columns(kv.k),
            part.of_columns(kv.v),
            part.of_rows(queries.out),
            part.of_lse(queries.lse),
            *_lengths(part),
            options.dropout_p,
            launch.window == CAUSAL,
            nothing if rng_state is None else rng_state,
            nothing,
            **_arguments(launch, options),
        )
        return part.grads(*grads)


def _lengths(part: GatheredLaunch) -> tuple[Tensor | None, Tensor | None, int, int]:
    return part.lengths or (None, None, part.rows.length, part.columns.length)


def _arguments(launch: Launch, options: Options) -> dict[str, Any]:
    left, right = launch.window
    window = {} if launch.window in (FULL, CAUSAL) else {"window_size_left": left, "window_size_right": right}
    return {"scale": options.softmax_scale} | window
