"""`ShardedCache`: a key-value cache for generation whose tokens are spread over a group of ranks."""

from __future__ import annotations

import copy
import inspect
from bisect import bisect_left
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import Cache, PretrainedConfig, PreTrainedModel

from ringattn.hf.cache_layer import ShardedLayer
from ringattn.hf.states import States
from ringattn_comms.communicator import Communicator
from ringattn_comms.connect import Group, communicator
from ringattn_core.errors import UnsupportedError

# Names of the argument: the new one, the old one, and the old one of Mamba.
NAMES = ("cache", "past_key_values", "cache_params")
# What most models of this version of transformers call it.
ARGUMENT = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"


class ShardedCache(Cache):  # type: ignore[misc]
    """The cache for `generate()` on a parallelized model: each rank keeps the keys of a part of the tokens.

        cache = ringattn.hf.ShardedCache(mesh["cp"])
        tokens = model.generate(**prompt, past_key_values=cache, max_new_tokens=256)

    `generate()` makes one if it gets none; pass one explicitly to continue from it later. From transformers 5.24 on the
    argument is called `cache`; the old name still works there, with a warning.

    group: the group that the model is parallelized over. All ranks make the same calls with the same tokens. The first
    call shards its tokens as in training. In later calls, of any length, every rank computes all tokens, and their keys
    go to the ranks in turn. Layers with a sliding window keep only the keys inside it, see `activate_past_recording`.
    Every rank gets the logits of all tokens, as in one process: for a long prompt pass logits_to_keep=1, as
    `generate()` does. When a prompt is read, all ranks copy the random state of the group's first rank, so that they
    sample the same tokens. The states of layers that mix tokens outside attention are whole on every rank.

    Keys and values are (rows, num_kv_heads, tokens, head_dim), in the model's dtype and on its device; no gradient
    passes through them. Raises TypeError and ValueError for a group as `ringattn.ContextParallel` does. The model
    raises UnsupportedError for labels together with a cache, for a backward pass through a call that read on from one,
    and for a layer whose keys did not come from the cache; ValueError for a cache of another group, and RuntimeError
    for one whose last call failed.
    """

    def __init__(self, group: Group = None) -> None:
        super().__init__(layer_class_to_replicate=ShardedLayer)
        self.comm: Communicator = communicator(group)
        self.length = 0  # tokens on all ranks, without those of the current call
        self.held: list[int] = []  # the positions of this rank's tokens, ascending; a layer keeps the last ones
        self._states: States | None = None
        self._record_past = False
        self._call: _Call | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedCache:
        """A copy for the same ranks, to continue one text in several ways."""
        memo[id(self.comm)] = self.comm  # a process group cannot be copied
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    @property
    def rows(self) -> int | None:
        """The number of rows in the batch; None before the first call."""
        return next((len(layer.keys) for layer in self.layers if layer.keys is not None), None)

    def expect(self, tokens: int, rows: Tensor, positions: list[int]) -> None:
        """Begin a call with `tokens` new tokens, of whose keys this rank keeps those with the indices `rows`.

        rows: (kept,) int64; positions: their positions in the text, ascending. Raises RuntimeError if the previous call
        has not finished.
        """
        if self._call is not None:
            raise RuntimeError(
                "The last call with this ShardedCache failed, so that some layers have its tokens and others do not. "
                "Call cache.reset(), or make another, and read the text again."
            )
        self._call = _Call(self.length + tokens, rows)
        self.held += positions

    def finish(self) -> None:
        """End the call, and count its tokens."""
        assert self._call is not None, "a call ends after it has begun"
        self.length, self._call = self._call.length, None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store this rank's part. Returns all stored keys and values or, in the first call, the given ones."""
        assert self._call is not None, "a call of the model has begun"
        while len(self.layers) <= layer_idx:
            self.layers.append(ShardedLayer(self._record_past))
        layer = self._call.layer = self.layers[layer_idx]
        stored: tuple[Tensor, Tensor] = layer.store(key_states, value_states, self._call.rows)
        if self.length == 0:
            return key_states, value_states
        self._call.returned.append((stored[0], layer))
        return stored

    def states(self, config: PretrainedConfig) -> Cache:
        """The cache of layers that mix tokens outside attention: their states are whole and the same on every rank.

        config: of the model that reads the text. Raises UnsupportedError before transformers 5.
        """
        if self._states is None:
            self._states = States(config, self._record_past)
        return self._states.cache

    def check(self, name: str, keys: Tensor, window: int | None) -> None:
        """Raise UnsupportedError unless a layer attends to keys that `update` has returned in this call."""
        assert self._call is not None, "a call of the model has begun"
        if self._call.layer is not None:
            known = keys.shape[2] == self._call.layer.count
        else:  # A layer that shares the keys of another one got the tensor that was returned for it.
            known = any(keys is given and window == layer.window for given, layer in self._call.returned)
        if not known:
            raise UnsupportedError(
                f"{name} attends to {keys.shape[2]} keys that are not those of its ShardedCache. Some models do not "
                "use their cache in training mode with gradient checkpointing: call model.eval(). Where a layer puts "
                "keys together by itself, generate with use_cache=False."
            )

    def attended(self, window: int | None) -> None:
        """The layer that stored its keys last has attended to them, and drops those outside its window."""
        assert self._call is not None, "a call of the model has begun"
        layer, self._call.layer = self._call.layer, None
        if layer is not None and window is not None:
            layer.window = window
            if not layer.record_past:
                self._forget(layer, self._call.length)

    def positions(self, layer_idx: int) -> Tensor:
        """The positions in the text of the tokens whose keys this rank has: (tokens,) int64, ascending."""
        return torch.tensor(self.held[len(self.held) - self.layers[layer_idx].count :], dtype=torch.int64)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return self.length + 1, 0  # for masks, which "ringattn" never makes

    def activate_past_recording(self) -> None:
        """From now on, layers with a window forget nothing until the next `crop`, which can go back to any token read
        since; `crop` leaves them their window. Assisted generation calls this by itself."""
        self._record_past = True
        for layer in self.layers:
            layer.record_past = True
        if self._states is not None:
            self._states.record_past()

    def crop(self, max_length: int) -> None:
        """Remove the tokens from `max_length` on or, if it is not positive, the last -max_length ones.

        Raises UnsupportedError, on all ranks and before anything is removed, if a layer has dropped keys that would be
        inside its window again; ValueError for more tokens than the cache has.
        """
        stop = min(self.length, max_length) if max_length > 0 else self.length + max_length
        if stop < 0:
            raise ValueError(f"crop({max_length}) would forget more than the {self.length} tokens in the cache.")
        if stop == 0:
            return self.reset()
        for number, layer in enumerate(self.layers):
            if layer.first > max(0, stop - (layer.window or 0) + 1):
                raise UnsupportedError(
                    f"This ShardedCache of {self.length} tokens cannot go back to {stop}: layer {number} sees the last "
                    f"{layer.window} tokens and has dropped those before token {layer.first}. Call "
                    "cache.activate_past_recording() before the model reads what crop is to take back."
                )
        if self._states is not None:
            self._states.crop(self.length, stop)
        del self.held[bisect_left(self.held, stop) :]
        self.length = stop
        for layer in self.layers:
            if layer.keys is None:
                continue  # This layer has a state and no keys.
            layer.drop_last(layer.count - self._kept_from(layer.first))
            if layer.window is not None:
                self._forget(layer, stop)

    def reset(self) -> None:
        """Remove everything."""
        self.layers.clear()
        self.held.clear()
        self.length, self._call, self._states = 0, None, None

    @property
    def is_initialized(self) -> bool:
        """Has any text been read? Models with a prefix let it see both ways in the first call alone."""
        return self.length > 0

    @property
    def is_croppable(self) -> bool:
        """Does `crop` work after `activate_past_recording`? Not if a layer has a recurrent state."""
        return super().is_croppable and (self._states is None or self._states.is_croppable)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        if self._states is not None:
            self._states.reorder(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self._states is not None:
            self._states.reorder(torch.arange(self._states.rows).repeat_interleave(repeats))

    def _forget(self, layer: ShardedLayer, length: int) -> None:
        """Drop the keys that no token after the first `length` sees."""
        assert layer.window is not None, "other layers drop nothing"
        layer.first = max(layer.first, length - layer.window + 1)
        layer.drop_first(layer.count - self._kept_from(layer.first))

    def _kept_from(self, first: int) -> int:
        """The number of tokens that this rank keeps from position `first` on."""
        return len(self.held) - bisect_left(self.held, first)


class _Call:
    """The state of the cache during one call of the model."""

    def __init__(self, length: int, rows: Tensor) -> None:
        self.length = length  # after the call
        self.rows = rows
        self.layer: ShardedLayer | None = None  # the one that has stored its keys and not yet attended to them
        self.returned: list[tuple[Tensor, ShardedLayer]] = []


def cache_of(arguments: dict[str, Any]) -> Cache | None:
    """The cache among a model's arguments, under any of `NAMES`."""
    return next((arguments[name] for name in NAMES if arguments.get(name) is not None), None)


def argument_of(model: PreTrainedModel) -> str:
    """The name of the argument for a model's cache."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in NAMES if name in parameters), ARGUMENT)
