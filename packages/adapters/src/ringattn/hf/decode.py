"""New tokens, on every rank, against the keys of a whole text, spread over the ranks.

Each rank attends to its share of the keys. One all-gather per layer exchanges the partial results, and one kernel
merges them by their log-sum-exp: tree attention in one step (Shyam et al. 2024, arXiv:2408.04093), which is flash
decoding across devices.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ringattn.agree import turn
from ringattn.hf.cache import ShardedCache
from ringattn.hf.partial import fused, plain
from ringattn_comms.header import encoded
from ringattn_core.errors import UnsupportedError
from ringattn_core.run.accumulate import merge_gathered
from ringattn_core.run.kernel import accumulator_dtype
from ringattn_core.run.merge import finite_or_nan, weighted_sum

if TYPE_CHECKING:
    from ringattn.hf.seen import Seen

Position = TypeVar("Position", int, Tensor)


@dataclass(frozen=True)
class Reach:
    """How far back a token sees: `size` tokens with itself, or to the start of its chunk of `size`; None is all."""

    size: int | None = None
    chunked: bool = False

    def first(self, position: Position, padding: Position) -> Position:
        """The first position that a token at `position` sees, in a row with so much padding at its left, or less."""
        if self.size is None:
            return position * 0
        if self.chunked:
            return position - (position - padding) % self.size
        return position - self.size + 1


class Decoding:
    """A call with `tokens` new tokens after those in the cache: what its layers' attention gets to know.

    mask: (rows, all tokens), False at padding, or None. The cache expects the tokens already.
    """

    # No dataclass, for the reason that `ShardedBatch` is none.
    def __init__(self, cache: ShardedCache, tokens: int, mask: Tensor | None, device: torch.device) -> None:
        self.cache, self.tokens, self.mask, self.device = cache, tokens, mask, device
        self.entry: nn.Module | None = None  # the module whose call this is
        self.seen: Seen | None = None  # by all layers, where a model around the text tower says it
        self._spans: dict[Reach, tuple[int, int, int]] = {}
        self._dead: dict[Reach, Tensor] = {}

    @property
    def start(self) -> int:
        """The position of the first new token."""
        return self.cache.length

    @cached_property
    def positions(self) -> Tensor:
        """Where this rank's keys stand in the text: (keys,), on the device of the tokens."""
        return torch.tensor(self.cache.held, dtype=torch.int64, device=self.device)

    @cached_property
    def padding(self) -> Tensor:
        """The number of tokens of padding at the left of each row, (rows or 1, 1)."""
        if self.mask is None:
            return torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        return (self.mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)

    def spans(self, reach: Reach) -> tuple[int, int, int]:
        """How many of this rank's keys, counted from the last, begin at each of three places.

        The first is the oldest key that any new token sees, the second the oldest that all see, and the third the
        first that not all see any more, because it is newer than the first of them. With three new tokens at positions
        8, 9 and 10, a reach of 4, and the keys 3, 5, 7, 9 on this rank, these are 5, 7 and 9: (3, 2, 1).
        """
        if reach not in self._spans:
            held, last = self.cache.held, self.start + self.tokens - 1
            # Where chunks begin differs between rows with padding: none of them reaches further than its size.
            oldest = reach if self.mask is None else replace(reach, chunked=False)
            seen, later = bisect_left(held, oldest.first(self.start, 0)), bisect_right(held, self.start)
            shared = min(later, bisect_left(held, oldest.first(last, 0)))
            self._spans[reach] = len(held) - seen, len(held) - shared, len(held) - later
        return self._spans[reach]

    def alive(self, queries: slice, keys: slice, reach: Reach) -> Tensor:
        """Which of some keys each of some new tokens sees: (rows or 1, 1, tokens, keys)."""
        at = self.positions[keys]
        new = torch.arange(self.start + queries.start, self.start + queries.stop, device=self.device)[None]
        first = reach.first(new, self.padding)  # (rows or 1, tokens)
        alive: Tensor = ((at <= new[..., None]) & (at >= first[..., None]))[:, None]
        return alive if self.mask is None else alive & self.mask[:, at][:, None, None, :]

    def dead(self, reach: Reach) -> Tensor:
        """Which new tokens see padding alone, whichever rank has it: (rows, tokens)."""
        assert self.mask is not None, "without padding a token sees itself"
        if reach not in self._dead:
            real = torch.nn.functional.pad(self.mask.cumsum(dim=1), (1, 0))  # up to each position, without it
            new = torch.arange(self.start, self.start + self.tokens, device=self.device)[None]
            first = reach.first(new, self.padding).clamp(min=0).expand(len(real), -1)
            self._dead[reach] = real[:, new[0] + 1] == real.gather(1, first)
        return self._dead[reach]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step: Decoding,
    *,
    scale: float,
    reach: Reach,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """The new tokens' attention: (rows, tokens, num_heads, head_dim_v), in q's dtype.

    q: (rows, num_heads, tokens, head_dim), the same on every rank. k, v: (rows, num_kv_heads, keys, head_dim and
    head_dim_v), the last of this rank's. A backward pass through it raises UnsupportedError.
    """
    with torch.no_grad():
        out, lse = _local(q, k, v, step, reach, scale, softcap)
        comm, terms = step.cache.comm, encoded((("shape", tuple(out.shape)), ("dtype", q.dtype), ("start", step.start)))
        with turn(comm, "attention of new tokens", terms, q.device):
            gathered = comm.all_gather(torch.cat([out, lse.unsqueeze(-1)], dim=-1)).wait()
        out = merge_gathered(gathered, q.dtype, sinks)
        if step.mask is not None:
            out = out.masked_fill(step.dead(reach)[:, :, None, None], 0.0)
    return _NoBackward.apply(out, q) if q.requires_grad else out  # type: ignore[no-untyped-call]


def _local(
    q: Tensor, k: Tensor, v: Tensor, step: Decoding, reach: Reach, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """What this rank's keys say: (rows, num_heads, tokens, head_dim_v) and lse (rows, num_heads, tokens)."""
    first, shared, later = step.spans(reach)
    if step.mask is not None:
        shared = later  # Padding: which keys are seen differs between rows.
    parts = []
    # Keys that only the first new tokens see, keys that all see, and keys that only the last see.
    for begin, end in ((first, shared), (shared, later), (later, 0)):
        if begin > end:
            keys = slice(k.shape[2] - begin, k.shape[2] - end)
            block_k, block_v, held = k[:, :, keys], v[:, :, keys], len(step.cache.held)
            if (begin, end) == (shared, later) and (found := fused(q, block_k, block_v, scale, softcap)) is not None:
                # Every query sees a key, so an infinite lse is that of a score that is not finite.
                parts.append((found[0], finite_or_nan(found[1])))
            else:
                alive = partial(step.alive, keys=slice(held - begin, held - end), reach=reach)
                parts.append(plain(q, block_k, block_v, alive, scale, softcap))
    dtype = accumulator_dtype(q.dtype)
    if not parts:
        shape = (*q.shape[:3], v.shape[3])
        return q.new_zeros(shape, dtype=dtype), q.new_full(shape[:3], -torch.inf, dtype=dtype)
    outs, lses = zip(*parts, strict=True)
    if len(parts) == 1:
        return outs[0].to(dtype), lses[0].to(dtype)
    every = torch.stack(lses)
    # Keys with lse -inf in all parts have no weight among those of all ranks.
    weights = every.softmax(dim=0).masked_fill((every == -torch.inf).all(dim=0), 0.0)
    return weighted_sum(torch.stack([out.to(dtype) for out in outs]), weights), every.logsumexp(dim=0)


class _NoBackward(torch.autograd.Function):
    """What it is given; but no gradient passes."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, q: Tensor) -> Tensor:
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        raise UnsupportedError(
            "There is no backward pass through a call that read on from a ShardedCache: the keys that it keeps have no "
            "gradient. Train on whole texts, without a cache, and generate under torch.no_grad()."
        )
