"""Layers that are given the plan of a batch and call their attention without it: hooks hand it on."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ringattn.hf import layers
from ringattn.hf.batch import KEYWORD


def hooks(model: nn.Module) -> list[RemovableHandle]:
    """Hooks on those layers of a model, and on their attention."""
    handles = []
    for layer, attention in layers.that_keep_the_plan(model):
        relay = _Relay()
        handles += [
            layer.register_forward_pre_hook(relay.take, with_kwargs=True),
            attention.register_forward_pre_hook(relay.give, with_kwargs=True),
            layer.register_forward_hook(relay.forget, always_call=True),
        ]
    return handles


class _Relay:
    """Holds the plan while the layer runs, also when it runs again for a checkpoint's gradient."""

    def __init__(self) -> None:
        self.plan: Any = None

    def take(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.plan = kwargs.get(KEYWORD)

    def give(self, attention: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {KEYWORD: self.plan}

    def forget(self, layer: nn.Module, args: Any, output: Any) -> None:
        self.plan = None
