"""Layers that mix tokens outside the attention call (linear attention, Mamba, short convolutions), on whole sequences.

Such a layer carries a state from token to token. In a parallelized model its input is gathered, every rank runs it on
whole sequences, and keeps the output of the tokens of its shard. The gradients are exact: each rank's come from the
output of its shard, so that the sum over ranks is the gradient of a parameter, and the adjoint of the gather sums the
gradients of the input.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ringattn.hf.batch import KEYWORD, ShardedBatch, padded
from ringattn.hf.cache import NAMES, ShardedCache
from ringattn.hf.decode import Decoding
from ringattn.hf.texts import Texts
from ringattn.no_compile import no_compile
from ringattn_core.errors import UnsupportedError

# Names of transformers' classes for these layers, without the name of the model in front.
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
# Called with several new tokens, these ignore the state in the cache.
_ONE_AT_A_TIME = (
    "FalconMambaMixer",
    "JambaMambaMixer",
    "MambaMixer",
    "RecurrentGemmaRecurrentBlock",
    "ZambaMambaMixer",
)
MASK = "attention_mask"
# Layer types in configurations that have such a layer, some of them together with attention.
LAYER_TYPES = frozenset({"conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba", "recurrent"})


def mixers(model: nn.Module) -> dict[str, nn.Module]:
    """All such layers in a model, by module name."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(kind.__name__.endswith(_CLASSES) for kind in type(module).__mro__)
    }


def has_attention(model: nn.Module) -> bool:
    """Does a model have attention layers? One without any of the layers above does."""
    found = {id(mixer) for mixer in mixers(model).values()}
    return not found or any(
        "Attention" in type(module).__name__ and id(module) not in found for module in model.modules()
    )


def hooks(model: PreTrainedModel) -> list[Any]:
    """Let every mixer of a model run on whole sequences, until what is returned is removed."""
    found = mixers(model)
    handles: list[Any] = [WholeSequences(mixer, model.config) for mixer in found.values()]
    parts = [name.split(".") for name in found]
    around = {".".join(each[:end]) for each in parts for end in range(1, len(each))}
    for caller in map(model.get_submodule, sorted(around)):
        if not has_attention(caller):
            handles.append(caller.register_forward_pre_hook(_also_as_mask, with_kwargs=True))
    if not has_attention(model) and model.base_model is not model:
        handles.append(model.base_model.register_forward_pre_hook(_also_by_keyword, with_kwargs=True))
    return handles


class InPlaceOfMask:
    """Carries the batch in place of the mask, the one argument that all layers and models without attention pass on.

    An argument of the call is also there when a checkpoint runs a layer again.
    """

    ndim = 0  # Some models replace a mask that has not two dimensions by None.

    def __init__(self, batch: ShardedBatch | Decoding) -> None:
        self.batch = batch


def batch_of(arguments: dict[str, Any]) -> ShardedBatch | Decoding | None:
    """The batch among a call's arguments, by its name or in place of a mask; None in a call that is not planned yet."""
    mask = arguments.get(MASK)
    return arguments.get(KEYWORD, mask.batch if isinstance(mask, InPlaceOfMask) else None)


@no_compile
def _also_as_mask(caller: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Pass the batch as the mask too, because some layers do not pass **kwargs on to their mixer."""
    names = list(inspect.signature(caller.forward).parameters)
    if KEYWORD not in kwargs or MASK not in names:
        return None
    mask, index = InPlaceOfMask(kwargs[KEYWORD]), names.index(MASK)
    if index < len(args):
        return (*args[:index], mask, *args[index + 1 :]), kwargs
    return args, kwargs | {MASK: mask}


@no_compile
def _also_by_keyword(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Pass the batch by name too, because some models without attention pass **kwargs on and not the mask."""
    parameters, mask = inspect.signature(model.forward).parameters.values(), kwargs.get(MASK)
    takes_more = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    if takes_more and isinstance(mask, InPlaceOfMask):
        return args, kwargs | {KEYWORD: mask.batch}
    return None


class WholeSequences:
    """Replaces the forward of a mixer, until it is removed."""

    def __init__(self, mixer: nn.Module, config: PretrainedConfig) -> None:
        self._mixer, self._inner, self._config = mixer, mixer.forward, config
        self._had_own = "forward" in vars(mixer)
        self._signature = inspect.signature(mixer.forward)
        mixer.forward = self.forward

    def remove(self) -> None:
        """Restore the forward of the mixer."""
        del self._mixer.forward
        if self._had_own:
            self._mixer.forward = self._inner

    @no_compile
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The mixer's output for this rank's tokens, from the hidden states (rows, local tokens, ...) of all ranks.

        Raises UnsupportedError if the batch is not among the arguments.
        """
        (_, hidden), *rest = _by_name(self._signature, args, kwargs).items()
        batch = batch_of(dict(rest))
        given = {name: value for name, value in rest if name not in (MASK, KEYWORD)}
        if batch is None:
            raise UnsupportedError(
                f"{type(self._mixer).__name__} mixes tokens of whole sequences, and got no plan of the batch: call it "
                "through its model, whose layers have to pass **kwargs on to it."
            )
        for name in NAMES:
            if isinstance(given.get(name), ShardedCache):
                given[name] = given[name].states(self._config)
        if isinstance(batch, Decoding):
            return self._decoded(batch, hidden, given)
        return self._sharded(batch, hidden, given)

    def _decoded(self, step: Decoding, hidden: Tensor, given: dict[str, Any]) -> Any:
        """The output for new tokens, which every rank has, as it has the state."""
        if step.tokens > 1 and type(self._mixer).__name__ in _ONE_AT_A_TIME:
            raise UnsupportedError(
                f"{type(self._mixer).__name__} got {step.tokens} tokens to continue from its state. The code in "
                "transformers does this for one token at a time, and would ignore the state: read the whole prompt in "
                "one call."
            )
        mask = None if step.mask is None or step.tokens == 1 else step.mask[:, -step.tokens :]
        return self._inner(hidden, **given, **{MASK: mask})

    def _sharded(self, batch: ShardedBatch, hidden: Tensor, given: dict[str, Any]) -> Any:
        """The output from gathered sequences. An exchange of heads, where each rank runs some of them, belongs here."""
        if batch.texts is not None and batch.cache is not None:
            raise UnsupportedError(
                f"A prompt with several texts in a row leaves {type(self._mixer).__name__} without a single state to "
                "continue from: give each text a row, with an attention_mask for its padding."
            )
        whole = batch.unshard(hidden)
        if given.get("position_ids") is not None:
            given["position_ids"] = batch.whole_positions(whole.device)
        if batch.texts is None:
            output = self._inner(whole, **given, **{MASK: batch.mask})
        else:
            output = self._in_texts(batch.texts, whole, given)
        mixed, *others = output if isinstance(output, tuple) else (output,)
        shard = batch.shard(padded(mixed, batch.length, 1, 0))
        return (shard, *others) if isinstance(output, tuple) else shard

    def _in_texts(self, texts: Texts, whole: Tensor, given: dict[str, Any]) -> Any:
        """The output for packed rows: each sequence is a row, with padding at its end that is dropped."""
        parts: list[dict[str, Any]] = [{MASK: None} for _ in range(texts.groups)]
        if given.get("position_ids") is not None:
            for part, positions in zip(parts, texts.split(given["position_ids"]), strict=True):
                part["position_ids"] = positions
        outputs = [self._inner(x, **given | part) for x, part in zip(texts.split(whole), parts, strict=True)]
        if not isinstance(outputs[0], tuple):
            return texts.join(outputs)
        # No layer reads the other values that these layers return.
        return (texts.join([output[0] for output in outputs]), *(None for _ in outputs[0][1:]))


def _by_name(signature: inspect.Signature, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    named = dict(signature.bind_partial(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name, {}))
    return named
