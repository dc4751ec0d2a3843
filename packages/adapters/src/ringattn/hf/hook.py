"""The hooks on a parallelized model, which shard the arguments of its calls and gather the loss of its outputs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from ringattn.agree import telling
from ringattn.context_parallel import ContextParallel
from ringattn.hf import (
    generate,
    heads,
    hybrid,
    inputs,
    layers,
    logits,
    neftune,
    outputs,
    positions,
    relay,
    rope,
    router,
    temperature,
    towers,
    unshifted,
    unsupported,
)
from ringattn.hf.batch import KEYWORD, ShardedBatch
from ringattn.hf.cache import ShardedCache, cache_of
from ringattn.hf.decode import Decoding
from ringattn.hf.same_batch import FirstCalls
from ringattn.no_compile import no_compile
from ringattn_core.errors import UnsupportedError

_CACHE = "_prepare_cache_for_generation"  # where `generate` makes a cache; a part of the model's class
_ATTRIBUTE = "ringattn_hooks"  # of the model, so that a copy of the model finds its copy of the hooks


class Hooks:
    """The hooks of one model. All state of a batch is in the arguments of the call, so that calls may be nested."""

    @staticmethod
    def of(model: PreTrainedModel) -> Hooks | None:
        """The hooks that a model has."""
        hooks: Hooks | None = vars(heads.sharded_part(model)).get(_ATTRIBUTE)
        return hooks

    def __init__(self, model: PreTrainedModel, cp: ContextParallel, whole_logits: bool = False) -> None:
        """model: its part that runs on shards gets the hooks, see `heads`."""
        below_head = heads.sharded_part(model) is not model
        model = heads.sharded_part(model)
        self.cp, self.config = cp, model.config
        self.whole: tuple[str, ...] = ("logits",) if whole_logits else ()
        if below_head:
            self.whole = outputs.PER_TOKEN
        self.last: ShardedBatch | None = None
        self.first_calls = FirstCalls()
        tower = unsupported.tower(model)
        self.has_tower, self.is_unshifted = tower is not model, unshifted.is_unshifted(model)
        self.makes_blocks = layers.makes_blocks(tower)
        self.has_attention, self.counted = hybrid.has_attention(tower), positions.Counted(tower, tower.config)
        self._handles = [
            *hybrid.hooks(tower),
            *relay.hooks(tower),
            *positions.hooks(tower),
            *temperature.hooks(tower),
            *router.hooks(model),
        ]
        # A loss may call the part below the head by itself. In a call that begins further out these hooks do nothing.
        entries = dict.fromkeys((model, model.base_model, tower))
        self._handles += [each.register_forward_pre_hook(self.before, with_kwargs=True) for each in entries]
        if (pooler := heads.pooler(tower)) is not None:
            self._handles.append(pooler.register_forward_pre_hook(self.pooling))
        if self.has_tower:
            self._handles += [
                tower.register_forward_pre_hook(self.inside, with_kwargs=True),
                tower.register_forward_hook(towers.keep, with_kwargs=True),
            ]
        self._handles += [each.register_forward_hook(self.after, with_kwargs=True) for each in entries]
        setattr(model, _ATTRIBUTE, self)
        if isinstance(model, GenerationMixin):
            # Bound to the model, so that a copy of the model has a copy that is bound to it.
            setattr(model, _CACHE, MethodType(_prepare_cache_for_generation, model))

    def __deepcopy__(self, memo: dict[int, Any]) -> Hooks:
        copied = memo[id(self)] = Hooks.__new__(Hooks)
        # A copy of the model runs over the same ranks, and a process group cannot be copied.
        copied.cp, copied.has_tower, copied.whole, copied.last = self.cp, self.has_tower, self.whole, None
        copied.is_unshifted = self.is_unshifted
        copied.makes_blocks = self.makes_blocks
        copied.first_calls, copied.has_attention, copied.counted = FirstCalls(), self.has_attention, self.counted
        copied.config, copied._handles = copy.deepcopy((self.config, self._handles), memo)
        return copied

    def remove(self, model: PreTrainedModel) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        part = heads.sharded_part(model)
        delattr(part, _ATTRIBUTE)
        vars(part).pop(_CACHE, None)

    @no_compile
    def before(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:
        """Replace the arguments of the whole batch by this rank's or, around a text tower, add the plan for them."""
        signature = inspect.signature(model.forward)
        arguments = _named(signature, args, kwargs)
        if hybrid.batch_of(arguments) is not None:
            return None  # A module around this one has done it.
        if not {"input_ids", "inputs_embeds"} & {*signature.parameters, *arguments}:
            # This is not the model's forward. A trainer has put a function in its place, which DDP or FSDP is to call,
            # and the model is called within that function.
            return None
        with telling(lambda: self.cp.communicator):
            return (), self._planned(model, arguments, logits.NAME in signature.parameters)

    def _planned(self, model: nn.Module, arguments: dict[str, Any], chooses: bool) -> dict[str, Any]:
        """The arguments that `before` returns. chooses: the model takes logits_to_keep."""
        if not _has_head(model):
            arguments = logits.replaced(arguments, None)  # There are no logits, and the model ignores it.
        unsupported.check_call(type(model).__name__, arguments, self.config)
        inputs.check(arguments)
        if self.is_unshifted:
            arguments = unshifted.arguments(arguments)
        self.first_calls.check(arguments, self.cp.communicator)
        if isinstance(cache_of(arguments), ShardedCache):
            planned = generate.prepare(arguments, self.cp, self.config, chooses)
        else:
            self.last = inputs.divided(arguments, self.cp)
            rope.check(self.config, self.last, arguments.get("position_ids"))
            router.check(model, arguments, self.config)
            planned = inputs.planned(arguments, self.last)
            if logits.asked(arguments):
                planned = generate.keep(planned, self.last, chooses and not self.has_tower)
        planned[KEYWORD].entry = model
        return planned if self.has_tower else self._local(planned, partial(neftune.local, model))

    @no_compile
    def inside(self, tower: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """Replace the text tower's arguments by this rank's. The features of images are already in the sequence."""
        with telling(lambda: self.cp.communicator):
            return (), self._local(_named(inspect.signature(tower.forward), args, kwargs), towers.local)

    @no_compile
    def pooling(self, pooler: nn.Module, args: Any) -> tuple[Tensor]:
        """Give a pooler the hidden states of all tokens."""
        return heads.whole(pooler, args, self.last)

    def _local(self, planned: dict[str, Any], local_of: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        local = local_of(self.counted.of(planned))
        if self.makes_blocks:
            # Of the whole batch, as `Seen` takes them.
            local |= {name: planned[name] for name in inputs.KINDS if name in planned}
        if self.has_attention:
            return local
        return local | {hybrid.MASK: hybrid.InPlaceOfMask(local[KEYWORD])}

    @no_compile
    def after(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Make the loss that of the whole batch. Raises UnsupportedError if no layer called the attention function."""
        batch = hybrid.batch_of(kwargs)
        if batch is None or batch.entry is not model:
            return output
        if isinstance(batch, Decoding):
            batch.cache.finish()
            return output
        if self.has_attention and not batch.was_used:
            raise UnsupportedError(
                f"{type(model).__name__} has run without calling its registered attention function, so that every rank "
                "attended only to the tokens of its shard: its attention layers do not use transformers' "
                "AttentionInterface."
            )
        if batch.cache is not None:
            batch.cache.finish()
        if batch.kept is not None:
            return logits.whole(output, batch)
        return outputs.gather_outputs(
            output,
            batch,
            with_loss=kwargs.get("labels") is not None,
            local_loss=self._loss_of(kwargs),
            # A loss that is computed from the outputs of a part of the model does not expect shards.
            whole=self.whole if vars(model).get(_ATTRIBUTE) is self else outputs.PER_TOKEN,
        )

    def _loss_of(self, planned: dict[str, Any]) -> Callable[[Tensor], Tensor]:
        return partial(unshifted.weighted, planned=planned) if self.is_unshifted else lambda loss: loss


def _prepare_cache_for_generation(
    model: GenerationMixin, config: GenerationConfig, arguments: dict[str, Any], mode: GenerationMode, *rest: Any
) -> None:
    """The model's method of this name, after a ShardedCache was added to the arguments."""
    hooks = Hooks.of(model)
    assert hooks is not None, "removed with the hooks"
    generate.prepare_cache(model, hooks.cp, config, arguments, mode)
    type(model)._prepare_cache_for_generation(model, config, arguments, mode, *rest)


def _has_head(model: nn.Module) -> bool:
    return getattr(model, "base_model", model) is not model


def _named(signature: inspect.Signature, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by their names, those of `**kwargs` among them."""
    named = dict(signature.bind_partial(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name, {}))
    return named
