"""Where the sequences in a batch begin and end: read from what transformers' collators say, once per batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ringattn.lengths import Lengths, read

Borders = tuple[int, ...]


def from_lengths(cu_seq_lens: Lengths, rows: int, tokens: int) -> list[Borders]:
    """The borders that a collator states, for one row; tokens after the last of them are padding.

    Raises ValueError for several rows, and for borders beyond the row.
    """
    borders = read(cu_seq_lens, "cu_seq_lens_q")
    if rows > 1:
        raise ValueError(
            f"cu_seq_lens_q describes one packed row, but the batch has {rows} rows: pack them into one of shape "
            "(1, tokens), as DataCollatorWithFlattening does, or leave it out and let position_ids restart."
        )
    if borders[-1] > tokens:
        raise ValueError(
            f"cu_seq_lens_q ends at {borders[-1]}, but the row has {tokens} tokens: give the model the whole row on "
            "every rank; it is sharded by the hook of ringattn.hf.parallelize."
        )
    return [borders if borders[-1] == tokens else (*borders, tokens)]


def from_tensors(rows: int, tokens: int, position_ids: Tensor | None, attention_mask: Tensor | None) -> list[Borders]:
    """The borders of every row: wherever positions do not go on by one, and around the padding.

    position_ids: (rows or 1, tokens), or with another dimension in front, which restarts nowhere. attention_mask:
    (rows, tokens), 0 at padding on either side of a row. Raises ValueError for padding within a row.
    """
    restarts = position_ids is not None and position_ids.dim() == 2
    if attention_mask is None and not restarts:
        return [(0, tokens)] * rows
    device = attention_mask.device if attention_mask is not None else position_ids.device  # type: ignore[union-attr]
    starts = torch.zeros(rows, tokens, dtype=torch.bool, device=device)
    starts[:, 0] = True
    real = torch.ones_like(starts) if attention_mask is None else attention_mask.bool()
    turns = real[:, 1:] != real[:, :-1]
    if restarts:
        assert position_ids is not None
        starts[:, 1:] |= (position_ids.diff(dim=1) != 1) & real[:, 1:]
    starts[:, 1:] |= turns
    begins = real[:, 0].long() + (turns & real[:, 1:]).sum(dim=1)
    if bool((begins > 1).any()):
        raise ValueError(
            "attention_mask has padding between real tokens. Padding at the left or at the right of a row is "
            "supported; several texts in one row are told apart by position_ids that restart, or by cu_seq_lens_q."
        )
    found = [[0] for _ in range(rows)]
    for place in starts.flatten().nonzero().flatten().tolist():
        if place % tokens:
            found[place // tokens].append(place % tokens)
    return [(*row, tokens) for row in found]
