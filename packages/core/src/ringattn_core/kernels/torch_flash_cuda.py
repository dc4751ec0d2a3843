"""PyTorch's own FlashAttention-2 on NVIDIA GPUs: the default that needs nothing but torch.

Its operators take a window, packed lengths and dropout, whose random state they return and replay. They read lengths as
cumulative, so rows with gaps are gathered first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ringattn_core.kernels.gathered_launch import GatheredLaunch, gathered_launch
from ringattn_core.kernels.gpu import why_unsupported
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import CAUSAL, FULL
from ringattn_core.run.kernel import NO_OUT_GRADS, Block, Grads, Options, OutGrads, Queries


class TorchFlashCuda:
    """bfloat16 and float16, any window, dropout, grouped heads."""

    name = "torch_flash"
    accepts_delta = False
    returns_input_dtype = True
    supports_out = False

    def supports(self, launch: Launch, q: Tensor, k: Tensor, v: Tensor, options: Options) -> str | None:
        if (why := why_unsupported(q, "Ampere")) is not None:
            return why
        if q.shape[2] != v.shape[2] or q.shape[2] > 256 or q.shape[2] % 8:
            return f"it takes one head dim, a multiple of 8 up to 256, not {q.shape[2]}/{v.shape[2]}"
        if options.softcap > 0:
            return "it has no softcap"
        if options.alibi_slopes is not None:
            return "its backward has no ALiBi"
        if options.deterministic and not torch.are_deterministic_algorithms_enabled():
            return "its backward is deterministic only under torch.use_deterministic_algorithms(True)"
        return None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, launch: Launch, options: Options, out_block: Block | None = None
    ) -> tuple[Block, Tensor | None]:
        part = gathered_launch(launch, q.device)
        out, lse, rng_state, *_ = torch.ops.aten._flash_attention_forward(
            part.of_rows(q),
            part.of_columns(k),
            part.of_columns(v),
            *_lengths(part),
            options.dropout_p,
            launch.window == CAUSAL,
            False,
            **_arguments(launch, options),
        )
        return part.block(out, lse), rng_state if options.dropout_p > 0 else None

    def backward(
        self,
        queries: Queries,
        k: Tensor,
        v: Tensor,
        launch: Launch,
        options: Options,
        rng_state: Tensor | None,
        out_grads: OutGrads = NO_OUT_GRADS,
    ) -> Grads:
        part = gathered_launch(launch, queries.q.device)
        nothing = torch.empty(0, dtype=torch.int64, device=queries.q.device)
        grads = torch.ops.aten._flash_attention_backward(
            part.of_rows(queries.dout),
            part.of_rows(queries.q),
            part.of_columns(k),
            part.of_columns(v),
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
    return part.lengths or (None, None, len(part.row_box), len(part.column_box))


def _arguments(launch: Launch, options: Options) -> dict[str, Any]:
    left, right = launch.window
    window = {} if launch.window in (FULL, CAUSAL) else {"window_size_left": left, "window_size_right": right}
    return {"scale": options.softmax_scale} | window
