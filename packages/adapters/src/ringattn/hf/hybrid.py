"""Layers that mix tokens outside the attention call, linear attention, Mamba, short convolutions: on whole sequences.

Such a layer carries a state from token to token. On a parallelized model its input is gathered, every rank runs it on
the whole of each sequence, and keeps its own tokens' output. The gradient is exact: each rank's comes from its own
output alone, so that a parameter's gradients are shares of the whole one, and those of the input are summed by the
gather's adjoint.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ringattn.hf.batch import KEYWORD, ShardedBatch, padded
from ringattn.hf.cache import ShardedCache
from ringattn.hf.decode import Decoding
from ringattn.hf.texts import Texts
from ringattn.untraced import untraced
from ringattn_core.errors import UnsupportedError

# How transformers calls the classes of these layers, behind the name of their model.
_CLASSES = (
    "BambaMixer",
    "DeltaAttention",
    "FalconH1Mixer",
    "GatedDeltaNet",
    "LightningAttention",
    "Mamba2Mixer",
    "MambaLayer",
    "MambaMixer",
    "RecurrentBlock",
    "ShortConv",
)
# How configurations call layers that have one of them, some beside attention.
LAYER_TYPES = frozenset({"conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba", "recurrent"})


def mixers(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Every such layer within a model, behind the module that calls it."""
    modules = dict(model.named_modules())
    return [
        (modules[path.rpartition(".")[0]], module)
        for path, module in modules.items()
        if any(kind.__name__.endswith(_CLASSES) for kind in type(module).__mro__)
    ]


def has_attention(model: nn.Module) -> bool:
    """Has a model attention layers, beside mixers or without any?"""
    found = {id(mixer) for _, mixer in mixers(model)}
    return not found or any(
        "Attention" in type(module).__name__ and id(module) not in found for module in model.modules()
    )


def hooks(model: PreTrainedModel) -> list[Any]:
    """Let every mixer of a model run on whole sequences, until what is returned is removed."""
    wrapped = [WholeSequences(caller, mixer) for caller, mixer in mixers(model)]
    if has_attention(model) or model.base_model is model:
        return wrapped
    return [*wrapped, model.base_model.register_forward_pre_hook(_also_by_keyword, with_kwargs=True)]


class InPlaceOfMask:
    """A batch where a model without attention expects a mask: the only argument that all of these pass on to layers."""

    ndim = 0  # Some ask a mask for its dimensions, and make None of what has not two.

    def __init__(self, batch: ShardedBatch | Decoding) -> None:
        self.batch = batch


def _also_by_keyword(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A batch in place of the mask goes in by its name too, where the model passes **kwargs on instead of the mask."""
    parameters = inspect.signature(model.forward).parameters.values()
    if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return args, kwargs
    return args, kwargs | {KEYWORD: kwargs["attention_mask"].batch}


class WholeSequences:
    """What a mixer runs instead of its forward, until it is removed."""

    def __init__(self, caller: nn.Module, mixer: nn.Module) -> None:
        self._mixer, self._inner = mixer, mixer.forward
        self._had_own = "forward" in vars(mixer)
        self._signature = inspect.signature(mixer.forward)
        self._batch: ShardedBatch | Decoding | None = None
        self._handle = caller.register_forward_pre_hook(self._receive, with_kwargs=True)
        mixer.forward = self.forward

    def remove(self) -> None:
        """Give the mixer its forward back."""
        self._handle.remove()
        del self._mixer.forward
        if self._had_own:
            self._mixer.forward = self._inner

    @untraced
    def _receive(self, caller: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Some callers do not pass **kwargs on to the mixer. A checkpoint that runs the caller again comes here too."""
        mask = kwargs.get("attention_mask")
        self._batch = kwargs.get(KEYWORD, mask.batch if isinstance(mask, InPlaceOfMask) else None)

    @untraced
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The mixer's output for this rank's tokens, from all ranks' hidden states (rows, local tokens, ...).

        Raises UnsupportedError where the batch has not come through.
        """
        (name, hidden), *rest = _by_name(self._signature, args, kwargs).items()
        given = dict(rest)
        # Used once: a mixer that is run again by itself must not take another batch for the one it had.
        received, self._batch = self._batch, None
        batch = given.pop(KEYWORD, received)
        if batch is None:
            raise UnsupportedError(
                f"{type(self._mixer).__name__} ran without the plan of its batch: checkpoint the decoder layer around "
                "it rather than the module alone, and call it through its model."
            )
        for cache in ("cache", "cache_params", "past_key_values"):
            if isinstance(given.get(cache), ShardedCache):
                given[cache] = given[cache].states
        if isinstance(batch, Decoding):
            # New tokens are on every rank already.
            mask = None if batch.mask is None or batch.tokens == 1 else batch.mask[:, -batch.tokens :]
            return self._inner(hidden, **given | {"attention_mask": mask})
        return self._sharded(batch, hidden, given)

    def _sharded(self, batch: ShardedBatch, hidden: Tensor, given: dict[str, Any]) -> Any:
        """On the whole sequences, gathered. An exchange of heads, where each rank runs a few of them, belongs here."""
        whole = batch.unshard(hidden)
        if given.get("position_ids") is not None:
            given["position_ids"] = batch.whole_positions(whole.device)
        if batch.texts is None:
            output = self._inner(whole, **given | {"attention_mask": batch.mask})
        else:
            output = self._in_texts(batch.texts, whole, given)
        mixed, *others = output if isinstance(output, tuple) else (output,)
        shard = batch.shard(padded(mixed, batch.length, 1, 0))
        return (shard, *others) if isinstance(output, tuple) else shard

    def _in_texts(self, texts: Texts, whole: Tensor, given: dict[str, Any]) -> Any:
        """The sequences of packed rows as rows of their own, in which padding comes last and is dropped."""
        positions = given.pop("position_ids", None)
        each = [{"attention_mask": None} for _ in range(texts.groups)]
        if positions is not None:
            each = [one | {"position_ids": part} for one, part in zip(each, texts.split(positions), strict=True)]
        outputs = [self._inner(part, **given | one) for part, one in zip(texts.split(whole), each, strict=True)]
        if not isinstance(outputs[0], tuple):
            return texts.join(outputs)
        # What else these layers return no layer reads.
        return (texts.join([output[0] for output in outputs]), *(None for _ in outputs[0][1:]))


def _by_name(signature: inspect.Signature, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    named = dict(signature.bind_partial(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name, {}))
    return named
