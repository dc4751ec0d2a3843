"""One layer's keys and values for the tokens of one rank, in buffers that grow in steps and not with every token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicLayer

SPARE = 256  # the number of further tokens that a new buffer has room for


class ShardedLayer(DynamicLayer):  # type: ignore[misc]
    """The keys and values of the last `count` tokens of this rank, (rows, num_kv_heads, count, dim).

    keys, values: views of the buffers, or None before the first call. window: that of the layer's attention, once
    known. first: tokens before this position are dropped on all ranks. record_past: tokens outside the window are kept.
    """

    def __init__(self, record_past: bool = False) -> None:
        super().__init__()
        self.record_past, self.first, self.count = record_past, 0, 0
        self.window: int | None = None
        self._start = 0  # the index in the buffers of the first token
        self._buffers: tuple[Tensor, ...] = ()

    def store(self, keys: Tensor, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Append some rows of new keys and values, (rows, num_kv_heads, tokens, dim); returns all."""
        new, states = len(rows), (keys.detach(), values.detach())
        if not self._writable(new):
            self._move(states, self.count + new + SPARE)
        if new:
            for buffer, state in zip(self._buffers, states, strict=True):
                chosen = state if new == state.shape[2] else state.index_select(2, rows)
                buffer.narrow(2, self._start + self.count, new).copy_(chosen)
        return self._view(self._start, self.count + new)

    def drop_first(self, tokens: int) -> None:
        """Drop the first tokens, and free their memory if it is large."""
        if tokens:
            self._view(self._start + tokens, self.count - tokens)
            if self._buffers[0].shape[2] > self.count + 2 * SPARE:
                self._move(self._buffers, self.count + SPARE)
                self._view(0, self.count)

    def drop_last(self, tokens: int) -> None:
        """Drop the last tokens."""
        if tokens:
            self._view(self._start, self.count - tokens)

    def _writable(self, new: int) -> bool:
        """Do the buffers have room for `new` tokens, and may they be written now?"""
        if not self._buffers or self._start + self.count + new > self._buffers[0].shape[2]:
            return False
        # What was made under torch.inference_mode() cannot be changed outside of it.
        return torch.is_inference_mode_enabled() or not self._buffers[0].is_inference()

    def _move(self, like: tuple[Tensor, ...], size: int) -> None:
        """Copy the tokens to buffers for `size` tokens, whose other dimensions are those of `like`."""
        old = self._buffers
        self._buffers = tuple(x.new_empty((*x.shape[:2], size, x.shape[3])) for x in like)
        for buffer, before in zip(self._buffers, old, strict=False):
            buffer.narrow(2, 0, self.count).copy_(before.narrow(2, self._start, self.count))
        self._start = 0

    def _view(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        self._start, self.count = start, count
        self.keys, self.values = (buffer.narrow(2, start, count) for buffer in self._buffers)
        return self.keys, self.values

    # All ranks have the rows of the batch, so these also run on a rank that holds no token.

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._change(lambda x: x[indices.to(x.device)])

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        self._buffers = tuple(change(buffer) for buffer in self._buffers)
        if self._buffers:
            self._view(self._start, self.count)
