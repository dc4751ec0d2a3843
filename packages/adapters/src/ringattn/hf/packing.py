"""The borders of the sequences in a batch, read once per batch from the tensors of transformers' collators."""

from __future__ import annotations

import warnings

from torch import Tensor

from ringattn.lengths import Lengths, read

Borders = tuple[int, ...]

_BESIDE_A_MASK = (
    "position_ids restart in a row that has an attention_mask. The texts of that row see each other, as with the masks "
    "of transformers: leave attention_mask out, or pass cu_seq_lens_q, to keep them apart."
)


def from_lengths(cu_seq_lens: Lengths, rows: int, tokens: int) -> list[Borders]:
    """The borders in `cu_seq_lens`, for one row; tokens after the last border are padding.

    Raises ValueError for several rows, and for borders after the end of the row.
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
    """The borders of every row: around its padding or, without a mask, wherever positions do not increase by one.

    position_ids: (rows or 1, tokens); those with a third dimension are not read. attention_mask: (rows, tokens), 0 at
    padding on either side of a row. If it is given, positions are not borders, as in the masks of transformers. Raises
    ValueError for padding within a row, and warns if positions restart in a row that has a mask.
    """
    told = position_ids if position_ids is not None and position_ids.dim() == 2 else None
    if attention_mask is not None:
        borders = _around_padding(attention_mask.bool())
        if told is not None and bool(((told.diff(dim=1) < 0) & ~borders).any()):
            warnings.warn(_BESIDE_A_MASK, stacklevel=2)
    elif told is not None:
        borders = (told.diff(dim=1) != 1).expand(rows, -1)
    else:
        return [(0, tokens)] * rows
    found = [[0] for _ in range(rows)]
    for row, place in borders.nonzero().tolist():
        found[row].append(place + 1)
    return [(*row, tokens) for row in found]


def _around_padding(real: Tensor) -> Tensor:
    """Which tokens of each row, without its last one, are followed by a border between padding and real tokens."""
    borders = real[:, 1:] != real[:, :-1]
    if bool((real[:, 0].long() + (borders & real[:, 1:]).sum(dim=1) > 1).any()):
        raise ValueError(
            "attention_mask has padding between real tokens. Padding at the left or at the right of a row is "
            "supported; several texts in one row are told apart by position_ids that restart, without an "
            "attention_mask, or by cu_seq_lens_q."
        )
    return borders
