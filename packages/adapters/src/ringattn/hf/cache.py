"""`ShardedCache`: the keys of a text that is being generated, spread over the ranks that read it together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import Cache, DynamicLayer

from ringattn_comms.communicator import Communicator
from ringattn_comms.connect import Group, communicator
from ringattn_core.errors import UnsupportedError

# What transformers calls the argument.
ARGUMENT = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"


class ShardedCache(Cache):  # type: ignore[misc]
    """The cache for `generate()` on a parallelized model: every rank keeps its own share of the tokens.

        cache = ringattn.hf.ShardedCache(mesh["cp"])
        tokens = model.generate(**prompt, past_key_values=cache, max_new_tokens=256)

    From transformers 5.24 on the argument is called `cache`; the old name still works there, with a warning. Without a
    cache, with use_cache=False, `generate()` reads the whole text again for every token.

    group: the group that the model is parallelized over. Every rank makes the same call with the same prompt. The
    prompt is sharded as in training; every new token's keys go to one rank in turn; layers with a sliding window
    keep no more than it. When a prompt is read, all ranks take over the random state of the group's first, so that
    they draw the same tokens.

    Keys and values are (rows, num_kv_heads, tokens, head_dim), in the model's dtype and on its device. Raises TypeError
    and ValueError for a group as `ringattn.ContextParallel` does. The model raises UnsupportedError for labels beside
    it, and ValueError for one that was made for another group.
    """

    def __init__(self, group: Group = None) -> None:
        super().__init__(layer_class_to_replicate=ShardedLayer)
        self.comm: Communicator = communicator(group)
        self.length = 0  # tokens on all ranks, those of the call under way not among them
        self._arriving = Arriving(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))

    def expect(self, rows: Tensor, positions: Tensor) -> None:
        """Of the next keys that each layer brings, keep these rows, which stand at these positions of the text."""
        self._arriving = Arriving(rows, positions)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store this rank's share; returns all that is stored, or, while a prompt is read, what came in."""
        while len(self.layers) <= layer_idx:
            self.layers.append(ShardedLayer())
        stored = self.layers[layer_idx].store(key_states, value_states, self._arriving)
        return stored if self.length else (key_states, value_states)

    def positions(self, layer_idx: int) -> Tensor:
        """Where in the text the tokens stand whose keys this rank has: (tokens,) int64."""
        positions: Tensor = self.layers[layer_idx].positions
        return positions

    def forget(self, layer_idx: int, window: int, length: int) -> None:
        """Drop what no token after the first `length` sees through a window."""
        self.layers[layer_idx].keep(self.positions(layer_idx) > length - window)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return self.length + 1, 0  # of masks that "ringattn" never makes

    def crop(self, max_length: int) -> None:
        """Forget the tokens from `max_length` on, or the last -max_length ones.

        Raises UnsupportedError where a layer has dropped what its window would then show again.
        """
        stop = max_length if max_length > 0 else self.length + max_length
        if stop < self.length and any(layer.dropped for layer in self.layers):
            raise UnsupportedError(
                "A ShardedCache whose layers keep only their sliding window cannot go back to an earlier token."
            )
        for layer in self.layers:
            layer.keep(layer.positions < stop)
        self.length = min(self.length, stop)

    def reset(self) -> None:
        self.layers.clear()
        self.length = 0


def cache_of(arguments: dict[str, Any]) -> Cache | None:
    """The cache among a model's arguments, under the new or the old name."""
    old: Cache | None = arguments.get("past_key_values")
    return arguments.get("cache", old)


class Arriving:
    """Which of the keys that come in are to be kept, and where in the text they stand."""

    def __init__(self, rows: Tensor, positions: Tensor) -> None:
        self.rows, self.positions = rows, positions


class ShardedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values of this rank's tokens, in no order but that of `positions`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.positions = torch.empty(0, dtype=torch.int64)
        self.dropped = False

    def store(self, keys: Tensor, values: Tensor, arriving: Arriving) -> tuple[Tensor, Tensor]:
        keys, values = (x.index_select(2, arriving.rows) for x in (keys, values))
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
            arriving = Arriving(arriving.rows, torch.cat([self.positions, arriving.positions]))
        self.keys, self.values, self.positions = keys, values, arriving.positions
        return keys, values

    def keep(self, kept: Tensor) -> None:
        """Keep the tokens for which the mask (tokens,) is true."""
        rows = kept.nonzero().flatten()
        self.dropped = self.dropped or len(rows) < len(kept)
        self._change(lambda x: x.index_select(2, rows))
        self.positions = self.positions[rows]

    # The rows of the batch are on every rank, so that a rank without a token of its own has to follow too.

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._change(lambda x: x[indices.to(x.device)])

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = change(self.keys), change(self.values)
