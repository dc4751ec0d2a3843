"""The arguments of a model on one rank: shifted labels, global positions, and shards of the other tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ringattn.context_parallel import ContextParallel
from ringattn.hf import given_mask, packing
from ringattn.hf.batch import KEYWORD, ShardedBatch, divide, padded
from ringattn.hf.cache import ShardedCache
from ringattn.hf.decode import Decoding
from ringattn.hf.seen import Seen
from ringattn_core.errors import UnsupportedError

IGNORED = -100  # transformers' label for "no target here"
# These describe the whole batch and are removed here, because a model would apply them to a shard.
PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
# The kind of each token: models make masks of them.
KINDS = ("token_type_ids", "mm_token_type_ids")
_CONSUMED = ("attention_mask", "cache_position")
# Sharded by name, or chosen for this rank.
_SHARDED = ("labels", "shift_labels", "num_items_in_batch", "position_ids", "logits_to_keep")


def tokens_of(arguments: dict[str, Any]) -> Tensor:
    """Token ids (rows, tokens) or embeddings (rows, tokens, hidden), whichever the model reads.

    Raises ValueError if there is neither, for other shapes, and for a batch without rows.
    """
    embedded = arguments.get("inputs_embeds") is not None
    name, shape = ("inputs_embeds", "(rows, tokens, hidden)") if embedded else ("input_ids", "(rows, tokens)")
    found: Tensor | None = arguments.get(name)
    if found is None:
        raise ValueError("The model got neither input_ids nor inputs_embeds: pass one of them, for it is sharded.")
    if found.dim() != 2 + embedded:
        raise ValueError(f"{name} must be {shape}, got {tuple(found.shape)}: one text alone is a row, {name}[None].")
    if len(found) == 0:
        raise ValueError(f"{name} has no rows, got {tuple(found.shape)}: skip a batch that is empty on all ranks.")
    return found


def check(arguments: dict[str, Any]) -> None:
    """Raise ValueError if labels or positions have other shapes than the tokens."""
    rows, tokens = tokens_of(arguments).shape[:2]
    whole = "Every rank passes them whole, and the hook of ringattn.hf.parallelize shards them."
    for name in ("labels", "shift_labels"):
        given = arguments.get(name)
        if given is not None and given.shape[:2] != (rows, tokens):
            raise ValueError(f"{name} must be (rows, tokens) = ({rows}, {tokens}), got {tuple(given.shape)}. {whole}")
    positions = arguments.get("position_ids")
    if positions is not None and tuple(positions.shape[-2:]) not in ((rows, tokens), (1, tokens), (tokens,)):
        raise ValueError(
            f"position_ids must be (rows, tokens) = ({rows}, {tokens}) or (1, {tokens}), got {tuple(positions.shape)}. "
            f"{whole}"
        )


def divided(arguments: dict[str, Any], cp: ContextParallel, cache: ShardedCache | None = None) -> ShardedBatch:
    """The division of the whole batch in a model's arguments.

    input_ids or labels: (rows, tokens); inputs_embeds: (rows, tokens, hidden). cache: keeps the keys. Raises ValueError
    for arguments that contradict each other, and for masks and borders that are not those of a whole batch.
    """
    rows, tokens = tokens_of(arguments).shape[:2]
    length = max(tokens, cp.cp_size)  # a model cannot run on a rank without a token
    mask = arguments.get("attention_mask")
    given = given_mask.read(arguments, rows, tokens, length) if given_mask.is_given(mask) else None
    borders: list[packing.Borders] = [(0, tokens)] * rows if given else _borders(arguments, rows, tokens)
    if length > tokens:
        borders = [(*row, length) for row in borders]
    to_shift = arguments.get("labels") is not None and arguments.get("shift_labels") is None
    cp = cp if given is None else cp.with_mask(given.masks)
    batch = divide(cp, borders, tokens, tokens - 1 if to_shift else tokens, cache)
    if given is not None:
        batch.seen, mask = Seen(given), None
    batch.mask, batch.position_ids = mask, arguments.get("position_ids")
    return batch


def planned(arguments: dict[str, Any], batch: ShardedBatch | Decoding) -> dict[str, Any]:
    """The arguments with the plan of the batch added and, if the batch is sharded, this rank's labels."""
    planned = {name: value for name, value in arguments.items() if name not in PACKING} | {KEYWORD: batch}
    if isinstance(batch, Decoding):
        return planned
    if batch.seen is not None:
        planned["attention_mask"] = None  # A model around a text tower makes nothing of it.
    # The next call could not use a cache with the keys of one rank.
    return planned | {"use_cache": False} | _labels(arguments, batch)


def local(arguments: dict[str, Any]) -> dict[str, Any]:
    """The planned arguments of the model that reads the sequence, with this rank's tokens in place of all."""
    batch: ShardedBatch | Decoding = arguments[KEYWORD]
    local = {name: value for name, value in arguments.items() if name not in _CONSUMED}
    positions = local.get("position_ids")
    if positions is None:
        start, stop = (batch.start, batch.start + batch.tokens) if isinstance(batch, Decoding) else (0, batch.length)
        positions = torch.arange(start, stop, device=tokens_of(local).device)[None]
    if isinstance(batch, Decoding):
        return local | {"position_ids": positions}
    local |= {name: _share(name, value, batch) for name, value in local.items() if name not in _SHARDED}
    # Rotary embeddings are made from these global positions.
    last = positions.dim() - 1
    return local | {"position_ids": batch.shard(padded(positions, batch.length, last, 0), dim=last)}


def _share(name: str, x: Any, batch: ShardedBatch) -> Any:
    """This rank's part of an argument whose shape has an entry for each token; other arguments as they are.

    Raises UnsupportedError if the tokens are along another dimension than the second.
    """
    if isinstance(x, list | tuple):
        return type(x)(_share(name, each, batch) for each in x)
    if not isinstance(x, Tensor) or batch.tokens not in x.shape:
        return x
    if x.shape[:2] in ((batch.rows, batch.tokens), (1, batch.tokens)):
        return batch.shard(padded(x, batch.length, 1, 0))
    if x.shape == (batch.rows,):
        return x
    raise UnsupportedError(
        f"The model got {name} of shape {tuple(x.shape)}. One of its dimensions is as long as the texts, and how to "
        "shard it is not known. A tensor with an entry for each token has the shape (rows, tokens, ...) = "
        f"({batch.rows}, {batch.tokens}, ...)."
    )


def _borders(arguments: dict[str, Any], rows: int, tokens: int) -> list[packing.Borders]:
    mask = arguments.get("attention_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.shape == (rows, tokens)):
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask must be (rows, tokens) = ({rows}, {tokens}) with 0 at padding, got {given}. Packed "
            "sequences are said by position_ids that restart, without a mask, or by cu_seq_lens_q."
        )
    if arguments.get("cu_seq_lens_q") is not None:
        return packing.from_lengths(arguments["cu_seq_lens_q"], rows, tokens)
    positions = arguments.get("position_ids")
    if positions is not None and positions.dim() == 3 and len(positions) == 4:
        positions = positions[0]  # text positions; those of images in time, height and width follow
    return packing.from_tensors(rows, tokens, positions, mask)


def _labels(arguments: dict[str, Any], batch: ShardedBatch) -> dict[str, Any]:
    """This rank's labels for the loss of transformers, whose mean over ranks is then the loss of one process.

    They are shifted before they are sharded, because the last target of a shard is a token of another rank.
    """
    targets = arguments.get("shift_labels")
    if targets is None:
        if arguments.get("labels") is None:
            return {}
        targets = shifted(arguments["labels"])
    items = arguments.get("num_items_in_batch")
    items = (targets != IGNORED).sum() if items is None else items
    targets = batch.shard(padded(targets, batch.length, 1, IGNORED)).contiguous()
    # The loss is computed if there are labels, and reads shift_labels.
    labels = None if arguments.get("labels") is None else targets
    return {"labels": labels, "shift_labels": targets, "num_items_in_batch": items / batch.row.cp_size}


def shifted(labels: Tensor) -> Tensor:
    """The target of each token in whole rows: the label of the next token, and IGNORED for the last one."""
    targets = labels.roll(-1, dims=1)
    targets[:, -1] = IGNORED
    return targets
