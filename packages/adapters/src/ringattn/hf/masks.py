"""What transformers' mask functions ask for, said as a band: how many keys before and after itself a query sees."""

from __future__ import annotations

from collections.abc import Callable
from inspect import getclosurevars
from typing import Any

from torch import Tensor

from ringattn.no_compile import no_compile
from ringattn_core.errors import UnsupportedError

_LIBRARY = "transformers.masking_utils"
_REASONS = {
    "blockwise_overlay": "its blocks see each other in both directions, as images or a prefix do",
    "chunked_overlay": "where its chunks end never reaches the attention call",
    "_legacy_chunked_overlay": "where its chunks end never reaches the attention call",
}

Sides = tuple[int, int]  # left and right, -1 for an open side
OPEN, CAUSAL = (-1, -1), (-1, 0)


class Band:
    """What a layer's attention gets as its mask.

    window: (left, right), as `ringattn.attention` takes it.
    """

    # No dataclass: with mixed precision FSDP2 takes those among a layer's arguments apart, and makes new ones.
    def __init__(self, window: Sides) -> None:
        self.window = window

    def __getitem__(self, cut: object) -> Band:
        """Gemma 4 cuts masks to the tokens whose logits are wanted: all of them here."""
        return self

    def __radd__(self, scores: object) -> None:
        """Raise UnsupportedError: an eager attention function adds its mask to the scores of this rank's tokens."""
        raise UnsupportedError(
            "A layer of a parallelized model has run without calling its registered attention function, so that every "
            "rank would attend to its own tokens alone: its configuration is not that of the model."
        )


@no_compile
def mask(*args: Any, mask_function: Callable[..., Any] | None = None, **kwargs: Any) -> Band:
    """The mask of this function for the attention layers; no function stands for the causal mask.

    Padding and packing were turned into sequences before the model ran. Versions of transformers call this with
    different arguments, of which none else is needed. Raises UnsupportedError for a function that asks for more than
    a band.
    """
    return Band(CAUSAL if mask_function is None else band(mask_function))


def band(function: Callable[..., Any]) -> Sides:
    """The band that a mask function stands for; transformers makes them of each other. Raises as `mask` does."""
    name = _name(function)
    inside = getclosurevars(function).nonlocals if name else {}
    match name:
        case "causal_mask_function":
            return CAUSAL
        case "bidirectional_mask_function":
            return OPEN
        case "sliding_window_overlay":
            return inside["sliding_window"] - 1, -1
        case "sliding_window_bidirectional_overlay":
            return inside["sliding_window"], inside["sliding_window"]
        case "packed_sequence_mask_function" | "padding_mask_function":
            return OPEN
        case "remap_positions_for_packed_sequence" | "add_offsets_to_mask_function":
            return band(inside["mask_function"])
        case "and_masks":
            return _both(*map(band, inside["mask_functions"]))
        case "or_masks":
            first, *others = (each for each in inside["mask_functions"] if not _empty(each))
            if not others:
                return band(first)
            name, function = _name(others[-1]), others[-1]
    reason = _REASONS.get(name, "nothing is known here of what it does")
    raise UnsupportedError(
        f"The model asks for the mask function {name or _path(function)}: {reason}. Causal masks, windows, padding and "
        "packed sequences are supported."
    )


def _both(*windows: Sides) -> Sides:
    """What is in all of these bands."""
    left, right = (min((side for side in sides if side >= 0), default=-1) for sides in zip(*windows, strict=True))
    return left, right


def _empty(function: Callable[..., Any]) -> bool:
    """Does the function add no cell to a mask? Models ask for blocks also where a batch has none."""
    if _name(function) != "blockwise_overlay":
        return False
    blocks: Tensor = getclosurevars(function).nonlocals["block_sequence_ids"]
    return bool((blocks < 0).all())


def _name(function: Callable[..., Any]) -> str:
    """The name in transformers' library of masks, "" for a function from elsewhere."""
    return _path(function).partition(".")[0] if function.__module__ == _LIBRARY else ""


def _path(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__).removesuffix(".<locals>.inner_mask")
