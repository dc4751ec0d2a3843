"""PyTorch's own FlashAttention-2 on NVIDIA GPUs: the default that needs nothing but torch.

Its operators take a window, packed lengths and dropout, whose random state they return and replay. It reads lengths as
cumulative, so rows with gaps are gathered first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ringattn_core.cells import column_index, row_index
from ringattn_core.kernel import Block, Grads, Options, Queries
from ringattn_core.kernels.lengths import column_lengths, row_lengths
from ringattn_core.schedule import Launch


class TorchFlashCuda:
    """bfloat16 and float16, any window, dropout, grouped heads."""

    name = "torch_flash"
    takes_delta = False
    rounds = True

    def supports(self, launch: Launch, q: Tensor, k: Tensor, v: Tensor, options: Options) -> str | None:
        if q.device.type != "cuda" or torch.cuda.get_device_capability(q.device)[0] < 8:
            return "it needs an NVIDIA GPU of the Ampere generation or newer"
        if q.dtype not in (torch.bfloat16, torch.float16):
            return f"it takes bfloat16 and float16, not {q.dtype}"
        if q.shape[2] != v.shape[2] or q.shape[2] > 256 or q.shape[2] % 8:
            return f"it takes one head dim, a multiple of 8 up to 256, not {q.shape[2]}/{v.shape[2]}"
        if options.softcap > 0:
            return "it has no softcap"
        if options.alibi_slopes is not None:
            return "its backward has no ALiBi"
        if options.deterministic and not torch.are_deterministic_algorithms_enabled():
            return "its backward is deterministic only under torch.use_deterministic_algorithms(True)"
        return None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, launch: Launch, options: Options) -> tuple[Block, Tensor | None]:
        rows, columns = row_index(launch, q.device), column_index(launch, q.device)
        lengths = _lengths(launch, q.device)
        out, lse, rng_state, *_ = torch.ops.aten._flash_attention_forward(
            *_batched(launch, q[rows], k[columns], v[columns]),
            *lengths,
            options.dropout_p,
            launch.window == (-1, 0),
            False,
            **_arguments(launch, options),
        )
        if len(launch.tiles) == 1:
            out, lse = out[0], lse[0]
        return Block(*_spread(launch, out, lse)), rng_state if options.dropout_p > 0 else None

    def backward(
        self, queries: Queries, k: Tensor, v: Tensor, launch: Launch, options: Options, rng_state: Tensor | None
    ) -> Grads:
        device = queries.q.device
        rows, columns = row_index(launch, device), column_index(launch, device)
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        lse = queries.lse[:, rows].contiguous()
        dout, q, k_part, v_part, out = _batched(
            launch, queries.dout[rows], queries.q[rows], k[columns], v[columns], queries.out[rows]
        )
        grads = torch.ops.aten._flash_attention_backward(
            dout,
            q,
            k_part,
            v_part,
            out,
            lse[None] if len(launch.tiles) == 1 else lse,
            *_lengths(launch, device),
            options.dropout_p,
            launch.window == (-1, 0),
            nothing if rng_state is None else rng_state,
            nothing,
            **_arguments(launch, options),
        )
        dq, dk, dv = (grad[0] for grad in grads) if len(launch.tiles) == 1 else grads
        return Grads(
            _in_box(dq, rows, launch.rows), _in_box(dk, columns, launch.columns), _in_box(dv, columns, launch.columns)
        )


def _batched(launch: Launch, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x[None] for x in tensors) if len(launch.tiles) == 1 else tensors


def _lengths(launch: Launch, device: torch.device) -> tuple[Tensor | None, Tensor | None, int, int]:
    if len(launch.tiles) == 1:
        return None, None, len(launch.rows), len(launch.columns)
    rows, columns = row_lengths(launch, device), column_lengths(launch, device)
    return rows.compact, columns.compact, rows.longest, columns.longest


def _arguments(launch: Launch, options: Options) -> dict[str, Any]:
    left, right = launch.window
    open_or_causal = launch.window in ((-1, -1), (-1, 0))
    window = {} if open_or_causal else {"window_size_left": left, "window_size_right": right}
    return {"scale": options.softmax_scale} | window


def _spread(launch: Launch, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """From the rows without gaps to the box around them."""
    rows = row_index(launch, out.device)
    if isinstance(rows, slice):
        return out, lse
    box_lse = lse.new_empty((lse.shape[0], len(launch.rows)))
    box_lse[:, rows - launch.rows.start] = lse
    return _in_box(out, rows, launch.rows), box_lse


def _in_box(x: Tensor, index: slice | Tensor, box: range) -> Tensor:
    if isinstance(index, slice):
        return x
    spread = x.new_empty((len(box), *x.shape[1:]))
    spread[index - box.start] = x
    return spread
