"""What the code of a model's layers says before it runs: what attention is asked for, and if a plan reaches it."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import cast

from torch import nn
from transformers import PretrainedConfig

# Arguments of an attention call that no mask expresses, with the reason that a user gets to read.
BEYOND_MASKS = {
    "position_bias": "a bias for every pair of tokens, which would have to be sharded in two dimensions",
    "indices": "a sparse indexer, which picks keys from all ranks for each query",
}


def reasons(model: nn.Module) -> Iterator[str]:
    """Why the attention layers within a model cannot run on shards, as far as their code says."""
    for way in dict.fromkeys(tuple(map(type, way)) for way in _ways(model)):
        attention = way[-1]
        for argument in sorted(BEYOND_MASKS.keys() & keywords(code_of(attention))):
            yield f"its {attention.__name__} passes {argument!r} to its attention: {BEYOND_MASKS[argument]}"
        for kind, inner in zip(way, (*way[1:], None), strict=True):
            if not _passes_on(_forward(kind)) and not (inner is attention and _takes_more(_forward(kind))):
                yield (
                    f"its {kind.__name__} does not pass **kwargs on, through which the plan of a batch has to reach "
                    "the attention layers"
                )


def ask_interface(model: nn.Module) -> bool:
    """Does any layer within a model ask transformers' AttentionInterface for a function?"""
    return any(True for _ in _ways(model))


def that_keep_the_plan(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The layers that take **kwargs and leave them out in the call of their attention, each with its attention."""
    for *_, layer, attention in (way for way in _ways(model) if len(way) > 1):
        if _takes_more(_forward(type(layer))) and not _passes_on(_forward(type(layer))):
            yield layer, attention


def code_of(kind: type[nn.Module]) -> CodeType:
    """The code of a class's forward."""
    return _forward(kind).__code__


def makes_blocks(model: nn.Module) -> bool:
    """Does a model say by itself, in its masks, which of its tokens see each other in both directions?"""
    return any("block_sequence_ids" in code_of(type(module)).co_consts for module in model.modules())


def in_other_tower(module: nn.Module, model: nn.Module) -> bool:
    """Has a module within a model of text a configuration of another kind, of images say?"""
    config = vars(module).get("config")
    return isinstance(config, PretrainedConfig) and type(config) is not type(vars(model).get("config", config))


def _ways(model: nn.Module) -> Iterator[tuple[nn.Module, ...]]:
    """The modules from the model down to each of its attention layers, without mere containers and other towers."""
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if in_other_tower(module, model):
            continue
        if "ALL_ATTENTION_FUNCTIONS" in code_of(type(module)).co_names:
            parts = path.split(".") if path else []
            way = (modules[".".join(parts[:end])] for end in range(len(parts) + 1))
            yield tuple(each for each in way if _forward(type(each)) is not nn.Module.forward)


def _forward(kind: type[nn.Module]) -> FunctionType:
    """The code that modules of a class run; one that is no function of Python says nothing, like a container's."""
    forward = inspect.unwrap(kind.forward)
    return forward if isinstance(forward, FunctionType) else cast(FunctionType, nn.Module.forward)


def keywords(code: CodeType) -> set[str]:
    """The names under which a function passes arguments to others: its code keeps those of a call in one tuple."""
    return {name for names in code.co_consts if isinstance(names, tuple) for name in names}


def _rest(forward: FunctionType) -> set[str]:
    """The name of its **kwargs, if it has any."""
    parameters = inspect.signature(forward).parameters.values()
    return {each.name for each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD}


def _takes_more(forward: FunctionType) -> bool:
    return bool(_rest(forward))


def _passes_on(forward: FunctionType) -> bool:
    """Does it take **kwargs, and read them again?"""
    rest = _rest(forward)
    for each in dis.get_instructions(forward):
        # Newer versions of Python load two variables at once.
        names = each.argval if isinstance(each.argval, tuple) else (each.argval,)
        if each.opname.startswith("LOAD_") and not rest.isdisjoint(names):
            return True
    return False
