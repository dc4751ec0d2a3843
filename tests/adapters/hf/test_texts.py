"""Packed rows as rows of one sequence each."""

from __future__ import annotations

import pytest
import torch

from ringattn.hf.texts import Texts


@pytest.mark.parametrize(
    ("borders", "rows", "length", "mask"),
    [
        ([0, 8], 1, 8, None),
        ([0, 8, 8], 1, 8, None),
        ([0, 8, 16], 2, 8, None),
        ([0, 3, 8], 1, 8, [[0, 0, 0, 1, 1, 1, 1, 1]]),
        ([0, 5, 8], 1, 8, [[1, 1, 1, 1, 1, 0, 0, 0]]),
        ([0, 1, 2], 1, 2, None),  # one token, and one of padding so that every rank has any
    ],
)
def test_one_sequence_in_each_row(borders: list[int], rows: int, length: int, mask: list[list[int]] | None) -> None:
    tokens = 1 if length == 2 else length
    assert Texts.of(borders, rows, length, tokens, None if mask is None else torch.tensor(mask)) is None


@pytest.mark.parametrize(
    ("borders", "rows", "length", "lengths"),
    [
        ([0, 3, 8], 1, 8, [3, 5]),
        ([0, 3, 3, 8], 1, 8, [3, 5]),  # a sequence without tokens
        ([0, 4, 8, 12, 16], 2, 8, [4, 4, 4, 4]),
        ([0, 8, 9, 16], 2, 8, [8, 1, 7]),
        ([0, 1, 2, 3, 40], 1, 40, [1, 1, 1, 37]),
    ],
)
def test_sequences_become_rows(borders: list[int], rows: int, length: int, lengths: list[int]) -> None:
    texts = Texts.of(borders, rows, length, length, None)
    assert texts is not None
    x = torch.randn(rows, length, 3)
    groups = texts.split(x)
    assert torch.equal(texts.join(groups), x)
    # A layer that adds up what came before starts anew with each sequence.
    sums = texts.join([group.cumsum(dim=1) for group in groups])
    expected = torch.cat([part.cumsum(dim=0) for part in x.flatten(0, 1).split(lengths)])
    torch.testing.assert_close(sums.flatten(0, 1), expected)
    assert sum(group[..., 0].numel() for group in groups) < 2 * rows * length
    assert texts.groups == len(groups) == len({(each - 1).bit_length() for each in lengths})


def test_padding_in_packed_rows() -> None:
    """It is a sequence like others: the real ones do not see it."""
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]])
    texts = Texts.of([0, 2, 6, 8], 1, 8, 8, mask)
    assert texts is not None and sum(len(group) for group in texts.split(torch.zeros(1, 8))) == 3


def test_positions_of_all_rows() -> None:
    texts = Texts.of([0, 4, 8, 12, 16], 2, 8, 8, None)
    assert texts is not None
    (positions,) = texts.split(torch.arange(8)[None])
    assert positions.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2
