"""The two hooks on a parallelized model: one shards what goes in, one mends the loss that comes out."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ringattn.context_parallel import ContextParallel
from ringattn.hf import inputs, refuse
from ringattn.hf.batch import KEYWORD, ShardedBatch
from ringattn.hf.loss import mean_over_ranks
from ringattn_core.errors import UnsupportedError


class Hooks:
    """The hooks of one model. Everything about one batch travels in the call's own arguments, never here."""

    def __init__(self, model: PreTrainedModel, cp: ContextParallel) -> None:
        self.cp, self.config, self.signature = cp, model.config, inspect.signature(model.forward)
        self.last: ShardedBatch | None = None
        self._handles = (
            model.register_forward_pre_hook(self.before, with_kwargs=True),
            model.register_forward_hook(self.after, with_kwargs=True),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Hooks:
        # Copies of the model run over the same ranks, and a process group cannot be copied.
        return self

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def before(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:
        """The whole batch's arguments become this rank's."""
        arguments = self._named(args, kwargs)
        if arguments.get(KEYWORD) is not None:
            return None  # a parallelized model around this one has done it
        refuse.check_call(type(model).__name__, arguments, self.config)
        local = inputs.shard(arguments, self.cp)
        self.last = local[KEYWORD]
        return (), local

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def after(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """The loss becomes the whole batch's. Raises UnsupportedError for a model whose attention went elsewhere."""
        batch = kwargs[KEYWORD]
        if not batch.was_used:
            raise UnsupportedError(
                f"{type(model).__name__} has run without calling its registered attention function, so that every rank "
                "attended to its own tokens alone: its attention layers do not use transformers' AttentionInterface."
            )
        if kwargs.get("labels") is None:
            return output
        return _with_loss(output, self.cp)

    def _named(self, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments by their names, those of `**kwargs` among them."""
        named = dict(self.signature.bind_partial(*args, **kwargs).arguments)
        for parameter in self.signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named.update(named.pop(parameter.name, {}))
        return named


def _with_loss(output: Any, cp: ContextParallel) -> Any:
    if isinstance(output, tuple):
        return (mean_over_ranks(output[0], cp.communicator), *output[1:])
    if output.get("loss") is not None:
        output["loss"] = mean_over_ranks(output["loss"], cp.communicator)
    return output
