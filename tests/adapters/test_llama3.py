"""The lengths of the llama 3 functions: what prepare returns, and what it means for the whole stream."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.comms import Mute
from adapters.sharded import LLAMA3, assert_exact, draw, solve, solve_family, truth
from ringattn.compat import ring_flash_attn
from ringattn.llama3 import stream_borders
from ringattn_comms.communicator import Communicator

prepare = ring_flash_attn.llama3_flash_attn_prepare_cu_seqlens


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[int], int]:
    """Borders, and a number of ranks that divides the tokens; many sequences are empty or short."""
    size, cuts = draw(st.integers(1, 6)), draw(st.lists(st.integers(0, 40), max_size=8))
    total = size * draw(st.integers(1, 8))
    return [0, *sorted(min(cut, total) for cut in cuts), total], size


@settings(max_examples=200, deadline=None, derandomize=True)
@given(streams(), st.booleans(), st.sampled_from([torch.int32, torch.int64]))
def test_18_prepare(stream: tuple[list[int], int], causal: bool, dtype: torch.dtype) -> None:
    """18: every rank's queries and keys, token by token, in the dtype of the input."""
    borders, size = stream
    length, position = borders[-1] // size, 0
    for rank in range(size):
        q, k, longest_q, longest_k, keys = prepare(torch.tensor(borders, dtype=dtype), causal, rank, size)
        assert q.dtype == k.dtype == dtype
        assert q[0] == k[0] == 0 and q[-1] == length and len(q) == len(k)
        assert longest_q == (q[1:] - q[:-1]).max() and longest_k == (k[1:] - k[:-1]).max()
        assert type(longest_q) is type(longest_k) is type(keys.start) is type(keys.stop) is int
        assert keys.stop - keys.start == k[-1]
        for (start, stop), (start_k, stop_k) in zip(pairwise(q.tolist()), pairwise(k.tolist()), strict=True):
            # The keys of the queries' sequence, in positions of the stream.
            first, last = start_k + keys.start, stop_k + keys.start
            for token in range(position + start, position + stop):
                begin = max(border for border in borders if border <= token)
                end = min(border for border in borders if border > token)
                assert first == begin and last == (min(end, position + length) if causal else end)
        position += length


@pytest.mark.parametrize(
    ("borders", "causal", "rank", "expected"),
    [
        ([0, 7, 14, 16], True, 3, ([0, 1, 2], [0, 7, 8], 1, 7, slice(0, 8))),
        ([0, 7, 14, 16], True, 4, ([0, 2], [0, 3], 2, 3, slice(7, 10))),
        ([0, 7, 14, 16], False, 3, ([0, 1, 2], [0, 7, 14], 1, 7, slice(0, 14))),
        ([0, 120, 1248, 4232], True, 2, ([0, 190, 529], [0, 1128, 1467], 339, 1128, slice(120, 1587))),
    ],
)
def test_18_values(
    borders: list[int], causal: bool, rank: int, expected: tuple[list[int], list[int], int, int, slice]
) -> None:
    """18: what the original returns."""
    q, k, *rest = prepare(torch.tensor(borders), causal, rank, 8)
    assert (q.tolist(), k.tolist(), *rest) == expected


def test_18_what_prepare_refuses() -> None:
    """18: a total that the ranks do not divide is an AssertionError, and as our errors a ValueError."""
    message = "cu_seqlens end at 10 tokens, which 4 ranks do not divide: pad the stream to 12"
    for error in (AssertionError, ValueError):
        with pytest.raises(error, match=message):
            prepare(torch.tensor([0, 3, 10]), True, 0, 4)
    for rank in (-1, 4):
        with pytest.raises(ValueError, match=f"rank must be from 0 to world_size - 1 = 3, got {rank}"):
            prepare(torch.tensor([0, 12]), True, rank, 4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (3, -1), (2, 0), (4, 2)], ids=str)
@pytest.mark.parametrize(
    "borders",
    [[0, 40], [0, 39, 40], [0, 1, 2, 3, 4, 20, 21, 22, 40], [0, 0, 10, 10, 20, 30, 40, 40], [0, 15, 40]],
    ids=str,
)
def test_19_documents_and_ranks(borders: list[int], window: tuple[int, int], causal: bool) -> None:
    """19: documents over many ranks, ranks of many documents; windows without causal, where the original is wrong."""
    if causal and window[1] > 0:
        return
    whole = draw(40, ())
    found = solve_family(LLAMA3, 4, whole, borders, causal=causal, window_size=window)
    assert_exact(found, truth(whole, borders, causal=causal, window_size=window))


def test_prepared_without_causal_and_called_with_it() -> None:
    """The keys reach over the last query then; positions decide all the same."""
    whole, borders = draw(24, ()), [0, 9, 24]

    def attend(q: Tensor, k: Tensor, v: Tensor, comm: Communicator) -> tuple[Tensor, Tensor]:
        lengths = prepare(torch.tensor(borders), False, comm.rank, comm.size)
        out, lse, _ = ring_flash_attn.llama3_flash_attn_varlen_func(
            *(q, k, v, *lengths[:4], 2, lengths[4]), causal=True, return_attn_probs=True, group=comm
        )
        return out, lse

    found = solve(3, attend, whole, LLAMA3.rows(borders, 3))
    assert_exact(found, truth(whole, borders, causal=True))


def test_nothing_at_all() -> None:
    """A stream of no tokens has lengths, and an answer of no rows."""
    q, k, longest_q, longest_k, keys = prepare(torch.tensor([0, 0]), True, 1, 2)
    assert (q.tolist(), k.tolist(), longest_q, longest_k, keys) == ([0, 0], [0, 0], 0, 0, slice(0, 0))
    assert stream_borders(q, k, keys, 1, 2, 0) == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 2}, r"do not describe the tokens 0 to 8 that rank 0 of 3 holds: take all of them from llama3_flash"),
        ({"keys": slice(1, 9)}, r"slice\(1, 9, None\) do not describe"),
        ({"keys": slice(0, 7)}, "do not describe"),
        ({"keys": slice(0, 16, 2)}, "do not describe"),
        ({"keys": slice(0, 30)}, "do not describe"),
        ({"keys": 8}, "local_k_slice must be a slice of the gathered keys, got 8"),
        ({"q": [0, 3, 7]}, "do not describe"),
        ({"q": [0, 4, 8]}, "do not describe"),
        ({"k": [0, 3, 9]}, "do not describe"),
        ({"q": [0, 8, 3]}, "cu_seqlens_q must never decrease"),
        ({"k": [1, 8]}, "cu_seqlens_k must start at 0"),
        ({"tokens": 9}, "do not describe the tokens 0 to 9"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit(change: dict[str, object], message: str) -> None:
    """All five values of prepare, and the tensors, have to be of one rank and one stream."""
    q, k, longest_q, longest_k, keys = prepare(torch.tensor([0, 3, 24]), True, change.get("rank", 0), 3)
    if "q" in change:
        q = torch.tensor(change["q"])
    if "k" in change:
        k = torch.tensor(change["k"])
    whole = draw(change.get("tokens", 8), ())
    with pytest.raises((TypeError, ValueError), match=message):
        ring_flash_attn.llama3_flash_attn_varlen_func(
            *whole[:3], q, k, longest_q, longest_k, 1, change.get("keys", keys), group=Mute(0, 3)
        )
