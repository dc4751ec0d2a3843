"""FlashAttention-2 as the package flash-attn has it, 2.6 and newer: what PyTorch's own lacks is softcap.

It has ALiBi too, but counts distances from a tile's bottom-right corner, and for causal tiles leaves a constant of each
row out of lse. The one is not the distance in the stream, the other does not merge, and a launch cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ringattn_core.kernels.gathered_launch import gathered_launch
from ringattn_core.kernels.limits import Limits
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import CAUSAL, FULL
from ringattn_core.run.kernel import Block, Grads, Kernel, Options, OutGrads, Queries
from ringattn_core.run.transport import KV

_LIMITS = Limits(generation="Ampere")


class FlashAttn2(Kernel):
    """bfloat16 and float16, any window, dropout or softcap, grouped heads; raises ImportError without the package."""

    name = "flash_attn_2"
    returns_input_dtype = True
    speed = (0.49, 0.50)  # 16,384 tokens, causal, on an H100 in November 2026

    def __init__(self) -> None:
        self._package = _package()

    def supports(self, launch: Launch, q: Tensor, kv: KV, options: Options) -> str | None:
        if (why := _LIMITS.why_unsupported(q, kv.v, options)) is not None:
            return why
        if options.alibi_slopes is not None:
            return "its ALiBi counts distances within a tile, not in the stream"
        if options.dropout_p > 0 and (options.softcap > 0 or q.shape[2] > 192):
            return "it has no dropout with softcap, nor on every GPU with head dims above 192"
        return None

    def forward(
        self, q: Tensor, kv: KV, launch: Launch, options: Options, out_block: Block | None = None
    ) -> tuple[Block, Tensor | None]:
        part, package = gathered_launch(options.plan_on(q.device), launch), self._package
        call = package.varlen_forward if part.lengths else package.forward
        found = call(
            *(part.of_rows(q), part.of_columns(kv.k), part.of_columns(kv.v), *(part.lengths or ())),
            *(options.dropout_p, options.softmax_scale, *package.mask(launch), options.softcap),
            *(None, False),  # ALiBi, and the dropout mask for tests
        )
        out, lse, rng_state = (found[index] for index in package.returned)
        return part.block(out, lse), rng_state if options.dropout_p > 0 else None

    def backward(
        self, queries: Queries, kv: KV, launch: Launch, options: Options, rng_state: Tensor | None, out_grads: OutGrads
    ) -> Grads:
        part, package = gathered_launch(options.plan_on(kv.k.device), launch), self._package
        q, out, dout = (part.of_rows(x) for x in (queries.q, queries.out, queries.dout))
        k, v = (part.of_columns(x) for x in kv)
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        call = package.varlen_backward if part.lengths else package.backward
        call(
            *(dout, q, k, v, out, part.of_lse(queries.lse), dq, dk, dv, *(part.lengths or ())),
            *(options.dropout_p, options.softmax_scale, *package.mask(launch), options.softcap),
            *(None, options.deterministic, rng_state),
        )
        return part.grads(dq, dk, dv)


class _Package(NamedTuple):
    """The functions of flash-attn, and the two things that its 2.7 changed about them."""

    forward: Callable[..., Any]
    varlen_forward: Callable[..., Any]
    backward: Callable[..., Any]
    varlen_backward: Callable[..., Any]
    window_is_tuple: bool
    returned: tuple[int, int, int]  # the places of out, lse and rng_state in what the forward functions return

    def mask(self, launch: Launch) -> tuple[Any, ...]:
        """The arguments `causal` and `window_size`, or `window_size_left` and `window_size_right`."""
        causal = launch.window == CAUSAL
        window = FULL if causal else launch.window
        return (causal, window) if self.window_is_tuple else (causal, *window)


def _package() -> _Package:
    from flash_attn import __version__, flash_attn_interface

    major, minor = (int(number) for number in __version__.split(".")[:2])
    if not (2, 6) <= (major, minor) < (3, 0):
        raise ImportError(f"flash-attn is here as {__version__}, and it has to be 2.6 or newer, and older than 3")
    older = minor < 7
    return _Package(
        flash_attn_interface._flash_attn_forward,
        flash_attn_interface._flash_attn_varlen_forward,
        flash_attn_interface._flash_attn_backward,
        flash_attn_interface._flash_attn_varlen_backward,
        window_is_tuple=older,
        returned=(0, 5, 7) if older else (0, 1, 3),
    )
