"""What a kernel is: something that computes one launch, forward and backward, on one device.

Tensors have no batch dimension: the rows of a batch are sequences of one packed stream. q is (tokens, num_heads,
head_dim), k is (tokens, num_kv_heads, head_dim) and v is (tokens, num_kv_heads, head_dim_v); lse and delta are
(num_heads, tokens), in the accumulator's dtype.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ringattn_core.plan.schedule import Launch
from ringattn_core.run.device_plan import DevicePlan
from ringattn_core.run.transport import KV


class Positions(NamedTuple):
    """Where the rows of q and the columns of a key buffer stand in the stream, aligned so that causal is k <= q."""

    q: Tensor  # (tokens,) int64
    k: Tensor  # (columns,) int64, -1 where no needed key lies


class Options(NamedTuple):
    """What one attention call asks of its kernel in addition to the mask.

    `softmax_scale` multiplies the scores; `softcap` (0 is none) then squashes them, cap * tanh(score / cap);
    `alibi_slopes`, (num_heads,) or (tokens of q, num_heads), subtract slope * distance. `dropout_p` drops
    probabilities with the mask that `seed` draws. Of a scale that is not positive the executor puts the sign into q:
    fast kernels, which scale after they have masked and taken the maximum, see positive ones only. `plan` has the index
    tensors of the pass's schedule.
    """

    softmax_scale: float
    softcap: float = 0.0
    alibi_slopes: Tensor | None = None
    dropout_p: float = 0.0
    seed: int = 0
    deterministic: bool = False
    positions: Positions | None = None
    first_head: int = 0
    plan: DevicePlan | None = None

    def plan_on(self, device: torch.device) -> DevicePlan:
        """The plan, or an empty one for a launch that is computed without a schedule."""
        return self.plan or DevicePlan(device)

    @property
    def positional(self) -> bool:
        """Does a score depend on more than the cell's place in its tile?"""
        return self.alibi_slopes is not None or self.dropout_p > 0

    def heads(self, heads: slice) -> Options:
        """The options for a slice of the query heads."""
        slopes = None if self.alibi_slopes is None else self.alibi_slopes[..., heads]
        return self._replace(alibi_slopes=slopes, first_head=self.first_head + heads.start)


class Block(NamedTuple):
    """A launch's normalised result for the box `launch.rows`; rows that belong to no tile may hold anything.

    Every row of a tile sees a key. Where its scores have no finite log-sum-exp, lse is not finite and out is NaN. Only
    of scores that are all -inf may out be the values weighted with 0: those of other launches may be finite.
    """

    out: Tensor  # (rows, num_heads, head_dim_v)
    lse: Tensor  # (num_heads, rows), natural logarithm


class Queries(NamedTuple):
    """The query side of a backward pass: out, lse and delta are global, over all keys of all ranks.

    lse is NaN where it is not finite, so that all probabilities of such a row are.
    """

    q: Tensor  # (tokens, num_heads, head_dim)
    out: Tensor  # (tokens, num_heads, head_dim_v)
    dout: Tensor  # (tokens, num_heads, head_dim_v)
    lse: Tensor  # (num_heads, tokens)
    # The sum of dout * out over a head's dimensions, less the gradient of lse; None where the kernel takes none.
    delta: Tensor | None  # (num_heads, tokens)

    def with_delta(self) -> Queries:
        """These with the delta of out and dout, if they have none."""
        return self if self.delta is not None else self._replace(delta=row_products(self.dout, self.out))


class Grads(NamedTuple):
    """A launch's gradients: dq for the box `launch.rows`, dk and dv for `launch.columns`; undefined between tiles."""

    dq: Tensor  # (rows, num_heads, head_dim)
    dk: Tensor  # (columns, num_kv_heads, head_dim)
    dv: Tensor  # (columns, num_kv_heads, head_dim_v)


class OutGrads(NamedTuple):
    """Where a launch's gradients may be written, each shaped like the gradient; None: nowhere, the kernel makes it."""

    dq: Tensor | None = None
    dk: Tensor | None = None
    dv: Tensor | None = None


NO_OUT_GRADS = OutGrads()


class Kernel(Protocol):
    """Computes launches, on the device and the stream of its tensors, which it leaves unchanged.

    It gets all queries of a rank and a whole buffer of keys; the launch's tiles say which rows and columns to use. The
    cell in row i and column j is live if tile.low <= j - i <= tile.high; `launch.window` says the same, aligned to a
    tile's bottom-right corner. Every row and every column of a tile has a live cell. Query head h belongs to kv head
    h // (num_heads // num_kv_heads). A class that derives from this states the attributes that differ from these.
    """

    name: str
    """What users and errors call it: its name in `choose.KERNELS`."""

    accepts_delta: bool = False
    """Backward uses the delta that it is given; otherwise it computes one from out and dout."""

    returns_input_dtype: bool = False
    """On a GPU its results come in the inputs' dtype, which fused sums require; otherwise in the accumulator's."""

    supports_out: bool = False
    """It writes into `out_block` and `out_grads` and returns them; otherwise it is given none.

    It leaves the rows between the tiles of a launch alone: other launches may be writing there.
    """

    speed: tuple[float, float] | None = (1.0, 1.0)
    """Forward and backward, as a share of FlashAttention 4's on the same GPU; 1 where it has not been measured.

    "auto" predicts routes with it. None: so slow that "auto" takes no route on which it has to compute.
    """

    def supports(self, launch: Launch, q: Tensor, kv: KV, options: Options) -> str | None:
        """Why it cannot compute this launch on such tensors; None if it can.

        Nothing else is asked: an option, dtype, device, window or head dim that is not rejected here is ignored or
        computed wrongly.
        """
        ...

    def forward(
        self, q: Tensor, kv: KV, launch: Launch, options: Options, out_block: Block | None = None
    ) -> tuple[Block, Tensor | None]:
        """The launch's block, and the random state that backward gets, if it draws one.

        `out_block`, which only kernels with `supports_out` get, is where out and lse go.
        """
        ...

    def backward(
        self, queries: Queries, kv: KV, launch: Launch, options: Options, rng_state: Tensor | None, out_grads: OutGrads
    ) -> Grads:
        """The launch's gradients, from the global lse and delta. Each entry of `out_grads` may be None independently.

        `rng_state` is what forward returned for this launch.
        """
        ...


def row_products(dout: Tensor, out: Tensor) -> Tensor:
    """The sum of dout * out over each head's dimensions: (num_heads, tokens), in the accumulator's dtype."""
    dtype = accumulator_dtype(out.dtype)
    return (dout.to(dtype) * out.to(dtype)).sum(-1).T


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
