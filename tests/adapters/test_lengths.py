"""Cumulative lengths: read once, from whatever they are given as."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ringattn import attention, lengths
from ringattn.lengths import Borders, read, repeated, scaled, sequence_positions, written


def test_a_tensor_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading waits for the device, so it happens again only when the tensor was changed."""
    read_from: list[Tensor] = []
    tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda x: read_from.append(x) or tolist(x))
    x = torch.tensor([0, 3, 8], dtype=torch.int32)
    first = read(x)
    assert first == (0, 3, 8) and read(x) is first and len(read_from) == 1
    x[1] = 5
    assert read(x) == (0, 5, 8) and len(read_from) == 2


def test_borders_that_change_without_a_trace_are_read_again() -> None:
    """NumPy and `.data` change a tensor, and PyTorch does not count it."""
    buffer = np.array([0, 8, 32])
    shared, written_to = torch.from_numpy(buffer), torch.tensor([0, 8, 32])
    assert read(shared) == read(written_to) == (0, 8, 32)
    buffer[1] = written_to.data[1] = 24
    assert read(shared) == read(written_to) == (0, 24, 32)
    prepared = written([0, 8, 32], shared)
    prepared.data[1] = 24
    assert read(prepared) == (0, 24, 32)
    shared.set_(torch.tensor([0, 5]))  # fewer of them, in other memory
    assert read(shared) == (0, 5)


def test_changed_borders_change_the_attention() -> None:
    buffer = np.array([0, 8, 32])
    borders, (q, k, v) = torch.from_numpy(buffer), torch.randn(3, 1, 32, 2, 16)
    for middle in (8, 24, 3):
        buffer[1] = middle
        out, wanted = (attention(q, k, v, causal=True, cu_seqlens=given) for given in (borders, [0, middle, 32]))
        assert torch.equal(out, wanted)


def test_nothing_is_kept_of_tensors_that_are_gone() -> None:
    gc.collect()  # What other tests have left goes first.
    before = len(lengths._read)
    x = torch.tensor([0, 4])
    read(x)
    x += 0
    read(x)
    assert len(lengths._read) == before + 1
    del x
    gc.collect()
    assert len(lengths._read) == before


def test_tensors_of_inference_mode_are_read_each_time() -> None:
    """They do not count their changes."""
    with torch.inference_mode():
        x = torch.tensor([0, 4, 6])
        assert read(x) == (0, 4, 6)
        x[1] = 2
        assert read(x) == (0, 2, 6)


def test_what_was_written_need_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    like = torch.tensor([0], dtype=torch.int32)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            x = written([0, 3, 8], like)
    monkeypatch.setattr(Tensor, "tolist", None)
    assert x.dtype == torch.int32 and read(x) == (0, 3, 8)


@pytest.mark.parametrize(
    "given",
    [
        [0, 3, 8],
        (0, 3, 8),
        range(0, 9, 4),
        torch.tensor([0, 3, 8]),
        [torch.tensor(0), torch.tensor(3)],
        Borders((0, 2)),
    ],
    ids=str,
)
def test_what_can_be_read(given: Any) -> None:
    found = read(given)
    assert isinstance(found, Borders) and found == tuple(int(border) for border in given)
    assert all(type(border) is int for border in found)


def test_borders_are_tuples() -> None:
    """They are equal to tuples, and hash as such."""
    assert Borders((0, 3)) == (0, 3) and hash(Borders((0, 3))) == hash((0, 3))
    assert {(0, 3): "found"}[Borders((0, 3))] == "found"  # type: ignore[index]


def test_arithmetic() -> None:
    borders = Borders((0, 3, 3, 8))
    assert scaled(borders, 2) == (0, 6, 6, 16)
    assert repeated(borders, 1) == borders
    assert repeated(borders, 2) == (0, 3, 3, 8, 11, 11, 16)
    assert repeated(borders, 0) == (0, 0, 0, 0)
    assert sequence_positions(borders).tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert sequence_positions((0, 0)).tolist() == []


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([1, 3], ValueError, r"lengths must start at 0.*got \[1, 3\]"),
        ([0], ValueError, r"one entry more than there are sequences, got \[0\]"),
        ([], ValueError, "must start at 0"),
        ([0, 5, 3], ValueError, "must never decrease, but entry 2 is 3 after 5.*cumulative sum"),
        (torch.tensor([0, 5, 3]), ValueError, "must never decrease"),
        ([0, 2.5], TypeError, r"must be a list or a one-dimensional tensor of whole numbers, got \[0, 2.5\]"),
        (8, TypeError, "must be a list or a one-dimensional tensor of whole numbers, got 8"),
        (torch.tensor([0.0, 4.0]), TypeError, r"whole numbers, got torch.float32 of shape \(2,\)"),
        (torch.tensor([False, True]), TypeError, "whole numbers, got torch.bool"),
        (torch.tensor([[0, 4]]), TypeError, r"one-dimensional.*of shape \(1, 2\)"),
        (["x" * 200], TypeError, "x{70}.*…"),
    ],
    ids=str,
)
def test_what_cannot_be_read(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read(given, "lengths")
