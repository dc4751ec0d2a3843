"""FlashAttention-3, for Hopper: the module flash_attn_interface, which is built from flash-attention's folder hopper.

Builds leave out what their maker did not want, the backward pass included, and say so in their flash_attn_config;
builds from before it (August 2025) are not used. As with FlashAttention-4, tiles with gaps go in one launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ringattn_core.kernels.lengths import varlen
from ringattn_core.kernels.limits import Limits
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import CAUSAL, FULL
from ringattn_core.run.kernel import Block, Grads, Kernel, Options, OutGrads, Queries
from ringattn_core.run.transport import KV

_LIMITS = Limits(generation="Hopper", or_newer=False, other_dims=((192, 128),), lacks=("ALiBi", "dropout"))


class FlashAttn3(Kernel):
    """bfloat16 and float16, any window, softcap, grouped heads; raises ImportError without the module."""

    name = "flash_attn_3"
    returns_input_dtype = True

    def __init__(self) -> None:
        self._package = _package()

    def supports(self, launch: Launch, q: Tensor, kv: KV, options: Options) -> str | None:
        if (lack := self._package.lacks(launch, q, kv.v, options)) is not None:
            return f"this build of it has no {lack}"
        if (why := _LIMITS.why_unsupported(q, kv.v, options)) is not None:
            return why
        if options.deterministic and q.shape[2] > 192:
            return "its backward for head dims above 192 is not deterministic"
        return None

    def forward(
        self, q: Tensor, kv: KV, launch: Launch, options: Options, out_block: Block | None = None
    ) -> tuple[Block, Tensor | None]:
        alone = len(launch.tiles) == 1
        k, v = (_box(x, launch.columns, alone) for x in kv)
        causal, left, right = _mask(launch)
        out, lse, *_ = self._package.forward(
            _box(q, launch.rows, alone),
            k,
            v,
            **({} if alone else varlen(options.plan_on(q.device), launch)._asdict()),
            softmax_scale=options.softmax_scale,
            causal=causal,
            window_size_left=left,
            window_size_right=right,
            softcap=options.softcap,
        )
        return (Block(out[0], lse[0]) if alone else Block(out, lse)), None

    def backward(
        self, queries: Queries, kv: KV, launch: Launch, options: Options, rng_state: Tensor | None, out_grads: OutGrads
    ) -> Grads:
        alone = len(launch.tiles) == 1
        dout, q, out = (_box(x, launch.rows, alone) for x in (queries.dout, queries.q, queries.out))
        k, v = (_box(x, launch.columns, alone) for x in kv)
        lse = queries.lse[:, launch.rows.start : launch.rows.stop].contiguous()
        grads = [x.new_empty(x.shape) for x in (q, k, v)]
        # By place, not by name: the names of the lengths used are misspelt there, and may be corrected one day.
        self._package.backward(
            *(dout, q, k, v, out, lse[None] if alone else lse),
            *((None,) * 6 if alone else varlen(options.plan_on(q.device), launch)),
            *(*grads, options.softmax_scale, *_mask(launch), options.softcap, options.deterministic),
        )
        return Grads(*(grad[0] if alone else grad for grad in grads))


class _Package(NamedTuple):
    """The functions of flash_attn_interface, and what this build of it left out."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    disabled: frozenset[str]  # of the build's flags, without their prefix
    longest_dim: int  # shorter ones, if left out, are padded to the next

    def lacks(self, launch: Launch, q: Tensor, v: Tensor, options: Options) -> str | None:
        """What the launch needs and this build has not, in words."""
        local = launch.window not in (FULL, CAUSAL)
        needs = {
            "backward pass": "BACKWARD" in self.disabled,
            "softcap": options.softcap > 0 and "SOFTCAP" in self.disabled,
            "windows": local and "LOCAL" in self.disabled,
            "packed sequences": len(launch.tiles) > 1 and "VARLEN" in self.disabled,
            "float16": q.dtype == torch.float16 and "FP16" in self.disabled,
            f"head dim {q.shape[2]}": q.shape[2] > self.longest_dim,
            f"head dims {q.shape[2]}/{v.shape[2]}": q.shape[2] != v.shape[2] and "HDIMDIFF192" in self.disabled,
        }
        return next((need for need, missing in needs.items() if missing), None)


def _package() -> _Package:
    import flash_attn_interface
    from flash_attn_config import CONFIG

    flags: dict[str, bool] = CONFIG["build_flags"]
    disabled = frozenset(flag.partition("_DISABLE_")[2] for flag, is_set in flags.items() if is_set)
    longest = max((dim for dim in (64, 96, 128, 192, 256) if f"HDIM{dim}" not in disabled), default=0)
    return _Package(
        flash_attn_interface._flash_attn_forward, flash_attn_interface._flash_attn_backward, disabled, longest
    )


def _mask(launch: Launch) -> tuple[bool, int, int]:
    """The arguments `causal`, `window_size_left` and `window_size_right`."""
    return (True, *FULL) if launch.window == CAUSAL else (False, *launch.window)


def _box(x: Tensor, box: range, alone: bool) -> Tensor:
    """The box's part of (tokens, heads, dim), as a batch of one if it is a tile alone."""
    part = x[box.start : box.stop]
    return part[None] if alone else part
