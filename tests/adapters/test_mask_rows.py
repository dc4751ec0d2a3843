"""Masks are read before anything is communicated: what is none, or does not fit the tokens, is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters.comms import Mute
from ringattn import ContextParallel, attention, masks
from ringattn.lengths import Borders
from ringattn.mask_rows import described, live, of_batch, read_masks, tokens
from ringattn.masks import Mask
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator
from ringattn_core.errors import UnsupportedError
from ringattn_core.plan.tile import FULL, Tile

CAUSAL = masks.causal(16)


def test_one_mask_or_one_for_each_row() -> None:
    other = masks.full(16)
    assert read_masks(None) is None and read_masks(CAUSAL) == (CAUSAL,)
    assert read_masks([CAUSAL, other]) == read_masks((CAUSAL, other)) == (CAUSAL, other)
    assert of_batch((CAUSAL,), 1) is CAUSAL and tokens((CAUSAL, other)) == 16
    assert of_batch((CAUSAL,), 3) == masks.packed([16] * 3)
    assert of_batch((CAUSAL, other), 2) == masks.end_to_end([CAUSAL, other])
    assert of_batch((CAUSAL,), 3) is of_batch((masks.causal(16),), 3), "every layer asks for it"
    assert of_batch((CAUSAL,), 0) == Mask((), 0, 0)


def test_a_window_is_live_where_there_is_no_mask() -> None:
    whole = (Borders((0, 16)),) * 2
    assert live(None, (3, 0), whole, 2) == described((3, 0)) == (3, 0)
    assert live((CAUSAL,), FULL, whole, 1) is CAUSAL
    assert described(CAUSAL) == f"{CAUSAL.digest} (1 tiles, 16 tokens)"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"mask": torch.ones(16, 16).bool()}, TypeError, r"got Tensor\. masks\.of_dense\(matrix\.tolist\(\)\) reads"),
        ({"mask": "causal"}, TypeError, "mask must be a mask that ringattn.masks makes, .*; got str"),
        ({"mask": []}, TypeError, r"got list of 0 \(\)"),
        ({"mask": [CAUSAL, 3]}, TypeError, r"got list of 2 \(Mask, int\)"),
        ({"mask": [CAUSAL] * 3}, ValueError, "one mask for all rows of a batch or one for each: got 3 for 2 rows"),
        (
            {"mask": [CAUSAL, masks.causal(14)]},
            ValueError,
            r"same number of tokens, got \[14, 16\].*masks\.end_to_end",
        ),
        (
            {"mask": CAUSAL, "causal": True},
            ValueError,
            r"mask says all .* the window \(-1, 0\) too: .*masks\.causal\(n\) & mask",
        ),
        ({"mask": CAUSAL, "window_size": (3, 0)}, ValueError, r"mask says all .* the window \(3, 0\) too"),
        (
            {"mask": masks.causal(18)},
            ValueError,
            "q has 8 tokens, but rank 0 of 2 holds 9 of the 18 .*those of the mask",
        ),
        ({"mask": masks.causal(8)}, ValueError, "q has 8 tokens, but rank 0 of 2 holds 4 of the 8 .*those of the mask"),
        (
            {"mask": CAUSAL, "cu_seqlens": [0, 7, 15]},
            ValueError,
            "The mask has 16 tokens and cu_seqlens ends at 15: both are of the whole row",
        ),
        (
            {"mask": CAUSAL, "cu_seqlens": [0, 7, 16]},
            ValueError,
            r"lets query 7 see key 0, which cu_seqlens put into different .*mask & masks\.packed\(lengths",
        ),
        ({"mask": masks.causal(16, 20)}, UnsupportedError, "16 queries and 20 keys: cross attention takes no mask yet"),
        (
            {"mask": CAUSAL, "cu_seqlens": [0, 16], "cu_seqlens_k": [0, 20]},
            UnsupportedError,
            "q is of 16 tokens and k of 20, .*cross attention takes no mask yet",
        ),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else None,
)
def test_what_does_not_fit_is_refused_and_told(given: dict[str, Any], error: type[Exception], message: str) -> None:
    """Of a call and of a ContextParallel; the other rank hears of it, and nothing else is communicated."""
    x = torch.zeros(2, 8, 2, 4)
    mask = given["mask"]
    others = {name: value for name, value in given.items() if name != "mask"}
    comm = Mute(0, 2)
    with pytest.raises(error, match=message):
        attention(x, x, x, cp=ContextParallel(comm), mask=mask, **others)
    (header,) = comm.said
    assert header.action == "refusal" and error.__name__ in header.refused
    with pytest.raises(error, match=message):
        attention(x, x, x, cp=ContextParallel(Mute(0, 2), mask=mask), **others)


def test_ranks_with_other_masks_are_told_both() -> None:
    """On each of them: the field, both digests, and the rank; equal masks that were made apart agree."""
    other = CAUSAL - Mask((Tile(range(9, 10), range(3, 4)),), 16, 16)

    def main(comm: Communicator) -> str:
        x = torch.zeros(1, 4, 2, 4)
        attention(x, x, x, cp=ContextParallel(comm), mask=masks.causal(16))
        try:
            attention(x, x, x, cp=ContextParallel(comm), mask=other if comm.rank == 2 else CAUSAL)
        except ValueError as error:
            return str(error)
        return "nothing"

    for message in run(4, main):
        assert f"mask is {described(CAUSAL)} on rank 0 and {described(other)} on rank 2" in message


def test_a_mask_that_keeps_sequences_apart_goes_with_their_borders() -> None:
    x = torch.zeros(1, 8, 2, 4)
    mask = CAUSAL & masks.packed([7, 9], window=(-1, -1))
    with pytest.raises(AssertionError, match="rank 0 called send_recv"):
        attention(x, x, x, cp=ContextParallel(Mute(0, 2)), cu_seqlens=[0, 7, 16], mask=mask)


def test_a_tensor_of_another_length_than_the_mask_is_not_sharded() -> None:
    cp = ContextParallel(Mute(0, 2), mask=CAUSAL)
    with pytest.raises(ValueError, match="The mask has 16 tokens, but the tensor to shard has 12 along the sequence"):
        cp.shard(torch.zeros(1, 12))
    with pytest.raises(ValueError, match="Rank 0 holds 8 of 16 tokens, but the tensor to unshard has 5"):
        cp.unshard(torch.zeros(1, 5))
    assert cp.with_mask(masks.causal(12)).shard(torch.zeros(1, 12)).shape == (1, 6)
    assert cp.with_mask(None).mask is None and cp.mask is CAUSAL
