"""The states of layers that mix tokens outside attention during generation: whole on every rank."""

from __future__ import annotations

import importlib
from typing import Any

import transformers
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from ringattn_core.errors import UnsupportedError


class States:
    """A DynamicCache, whose attention layers stay empty.

    Raises UnsupportedError before transformers 5, where each model keeps its states in a different way.
    """

    def __init__(self, config: PretrainedConfig, record_past: bool) -> None:
        if int(transformers.__version__.split(".")[0]) < 5:
            raise UnsupportedError(
                "Layers with a state, such as linear attention, generate from a ShardedCache with transformers 5, and "
                f"this is {transformers.__version__}: use_cache=False reads the whole text again for every token."
            )
        self.cache = _Cache(config=config)
        kind = importlib.import_module("transformers.cache_utils").LinearAttentionCacheLayerMixin
        self._layers: list[Any] = [layer for layer in self.cache.layers if isinstance(layer, kind)]
        if record_past:
            self.record_past()

    @property
    def rows(self) -> int:
        """The number of rows in the batch."""
        layer = self._layers[0]
        states = *layer.conv_states.values(), *layer.recurrent_states.values()
        return next(len(state) for state in states if state is not None)

    @property
    def is_croppable(self) -> bool:
        """Does `crop` work? It does for the last inputs of a convolution, and not for a recurrent state."""
        return all(layer.is_croppable for layer in self._layers)

    def record_past(self) -> None:
        """Keep all inputs of convolutions until the next `crop`."""
        for layer in self._layers:
            layer.activate_past_recording()

    def crop(self, length: int, stop: int) -> None:
        """Go back from `length` tokens to `stop`. Raises UnsupportedError if that is impossible."""
        recorded = all(layer.record_past for layer in self._layers)
        if stop < length and not (self.is_croppable and recorded):
            raise UnsupportedError(
                f"The states of this ShardedCache cannot go back from {length} to {stop} tokens: a recurrent state "
                "never can, and the inputs of a convolution only after cache.activate_past_recording()."
            )
        if recorded and self.is_croppable:
            for layer in self._layers:
                layer.crop(stop - length)

    def reorder(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        for layer in self._layers:
            layer.reorder_cache(rows)


class _Cache(DynamicCache):  # type: ignore[misc]
    """With the methods that the layers of MiniMax call."""

    def get_linear_cache(self, layer_idx: int) -> Tensor | None:
        state: Tensor | None = self.layers[layer_idx].recurrent_states[0]
        return state

    def set_linear_cache(self, layer_idx: int, state: Tensor) -> None:
        self.layers[layer_idx].update_recurrent_state(state)
