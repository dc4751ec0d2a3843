"""What transformers' mask functions ask for: read as a pattern, which layers get as their mask."""

from __future__ import annotations

import dis
from collections.abc import Callable
from inspect import getclosurevars
from types import FunctionType
from typing import Any

from ringattn.hf.mask_patterns import Band, Blocks, Chunks, Pattern, both, either
from ringattn.hf.seen import Seen
from ringattn.no_compile import no_compile
from ringattn_core.errors import UnsupportedError
from ringattn_core.plan.tile import CAUSAL, FULL

_LIBRARY, _MODELS = "transformers.masking_utils", "transformers.models."


@no_compile
def mask(*args: Any, mask_function: Callable[..., Any] | None = None, **kwargs: Any) -> Seen:
    """The mask of this function for the attention layers; no function stands for the causal mask.

    Padding and packing were turned into sequences before the model ran. Versions of transformers call this with
    different arguments; no other one is needed. Raises UnsupportedError for a function that is not known.
    """
    return Seen(Band(CAUSAL) if mask_function is None else pattern(mask_function))


def pattern(function: Callable[..., Any]) -> Pattern:
    """The pattern that a mask function stands for; transformers makes them of each other. Raises as `mask` does."""
    name = _name(function)
    inside = getclosurevars(function).nonlocals if name else {}
    found: Pattern | None = None
    match name:
        case "causal_mask_function":
            found = Band(CAUSAL)
        case "bidirectional_mask_function" | "packed_sequence_mask_function" | "padding_mask_function":
            found = Band(FULL)
        case "sliding_window_overlay":
            found = Band((inside["sliding_window"] - 1, -1))
        case "sliding_window_bidirectional_overlay" | "_bidirectional_window_overlay":
            # Some let a query see the token that is exactly so far away, and some do not.
            far = inside["sliding_window"]
            side = far if function(0, 0, far, 0) else far - 1
            found = Band((side, side))
        case "chunked_overlay":
            found = Chunks(inside["chunk_size"])
        case "blockwise_overlay":
            found = Blocks(inside["block_sequence_ids"])
        case "remap_positions_for_packed_sequence" | "add_offsets_to_mask_function":
            found = pattern(inside["mask_function"])
        case "and_masks":
            found = both(map(pattern, inside["mask_functions"]))
        case "or_masks":
            parts = map(pattern, inside["mask_functions"])
            # Models ask for blocks also where a batch has none.
            found = either(part for part in parts if not (isinstance(part, Blocks) and bool((part.ids < 0).all())))
        case "" if _says_yes(function):
            found = Band(FULL)
    if found is None:
        raise UnsupportedError(
            f"The model asks for the mask function {name or _path(function)}: nothing is known here of what it does. "
            "Causal masks, windows, chunks, blocks of tokens that see each other, padding and packed sequences are "
            "supported."
        )
    return found


def _name(function: Callable[..., Any]) -> str:
    """The name in transformers, "" for a function from elsewhere, or one of a model that is not known."""
    name = _path(function).partition(".")[0]
    if function.__module__ == _LIBRARY or (
        function.__module__.startswith(_MODELS) and name == "_bidirectional_window_overlay"
    ):
        return name
    return ""


def _says_yes(function: Callable[..., Any]) -> bool:
    """Is it a function of transformers that reads no argument and no variable around it, and returns True?"""
    if not isinstance(function, FunctionType) or not function.__module__.startswith(_MODELS):
        return False
    reads = {each.opname for each in dis.get_instructions(function)}
    return not any(each.startswith(("LOAD_FAST", "LOAD_DEREF")) for each in reads) and bool(function(0, 0, 0, 0))


def _path(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__).removesuffix(".<locals>.inner_mask")
