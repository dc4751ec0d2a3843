"""Masks that a user gives a model whole, as its attention_mask: of `ringattn.masks`, or matrices of booleans."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ringattn.hf.mask_patterns import Given
from ringattn_core.errors import UnsupportedError
from ringattn_core.plan.mask import Mask, disjoint_mask
from ringattn_core.plan.read_mask import MAX_TILES, of_dense


def is_given(mask: Any) -> bool:
    """Does an attention_mask say what each query sees, and not which tokens are padding?"""
    return isinstance(mask, Mask | list | tuple) or (isinstance(mask, Tensor) and mask.dim() == 4)


def read(arguments: dict[str, Any], rows: int, tokens: int, length: int) -> Given:
    """What a model's attention_mask lets see, in rows that are padded to `length`; padding sees nothing.

    It is a `Mask`, a list of one for each row, or booleans (rows or 1, 1, tokens, tokens), whose bands are read. Raises
    ValueError for other shapes, lengths and dtypes, and for cu_seq_lens_q; UnsupportedError for too many tiles.
    """
    mask = arguments["attention_mask"]
    if arguments.get("cu_seq_lens_q") is not None:
        raise ValueError(
            "attention_mask says what every query sees, and cu_seq_lens_q which tokens are sequences: leave one of "
            "them out, or keep sequences apart in the mask, as masks.packed does."
        )
    given = _of_tensor(mask, rows, tokens) if isinstance(mask, Tensor) else _of_masks(mask, rows)
    for each in given:
        if (each.num_queries, each.num_keys) != (tokens, tokens):
            raise ValueError(
                f"attention_mask is a mask of {each.num_queries} queries and {each.num_keys} keys, and a row of the "
                f"batch has {tokens} tokens: a mask is of a whole row."
            )
    return Given(tuple(disjoint_mask(each.tiles, length, length) for each in given))


def _of_masks(mask: Any, rows: int) -> list[Mask]:
    given = [mask] if isinstance(mask, Mask) else list(mask)
    if len(given) not in (1, rows) or not all(isinstance(each, Mask) for each in given):
        kinds = ", ".join(dict.fromkeys(type(each).__name__ for each in given))
        raise ValueError(
            f"attention_mask must be a mask of ringattn.masks, or a list of one for each of {rows} rows; got a list of "
            f"{len(given)} ({kinds})."
        )
    return given


def _of_tensor(mask: Tensor, rows: int, tokens: int) -> list[Mask]:
    if mask.shape not in ((rows, 1, tokens, tokens), (1, 1, tokens, tokens)) or mask.dtype != torch.bool:
        raise ValueError(
            f"An attention_mask of four dimensions must be ({rows} or 1, 1, {tokens}, {tokens}) booleans, True where a "
            f"query sees a key, got {tuple(mask.shape)} of {mask.dtype}. Every rank passes all of it."
        )
    found = []
    for row, matrix in enumerate(mask[:, 0].cpu().numpy()):
        found.append(of_dense(matrix, max_tiles=tokens**2))
        if (tiles := len(found[-1].tiles)) > MAX_TILES:
            raise UnsupportedError(
                f"attention_mask takes {tiles:,} tiles in row {row}, more than {MAX_TILES:,}: its live cells are in "
                "few bands, or in none. Causal text, windows, prefixes, images, chunks and trees take few tiles."
            )
    return found
