"""A division that a rank could not repeat from its share, or that loses a token, is refused."""

from __future__ import annotations

import pytest
import torch

from adapters.comms import Mute
from ringattn import attention
from ringattn.context_parallel import ContextParallel
from ringattn_core.plan.layout import Layout


@pytest.mark.parametrize(
    ("layout", "length", "message"),
    [
        ("zigzag", 9, r"not divide 9 tokens evenly among 2 ranks.*cu_seqlens=\[0, 9\]"),
        ("contiguous", 7, r"not divide 7 tokens evenly among 2 ranks.*cu_seqlens=\[0, 7\]"),
    ],
)
def test_lengths_that_do_not_divide(layout: str, length: int, message: str) -> None:
    """A rank cannot tell the whole length from its share, so uneven lengths have to be said."""
    with pytest.raises(ValueError, match=message):
        ContextParallel(Mute(0, 2), layout).shard(torch.zeros(1, length))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (lambda extent, rank, size: (extent[rank * 2 : rank * 2 + 3],), "has position 2 twice"),
        (lambda extent, rank, size: (extent[rank * 2 : rank * 2 + 2],), "leaves out 4 of the 8 positions"),
    ],
)
def test_a_layout_of_ones_own_is_proven_before_it_is_used(layout: Layout, message: str) -> None:
    """Before the tokens are shared out, and where they are shares already."""
    cp, x = ContextParallel(Mute(0, 2), layout=layout, cu_seqlens=[0, 8]), torch.zeros(1, 8, 2, 4)
    with pytest.raises(ValueError, match=message):
        cp.shard(x)
    with pytest.raises(ValueError, match=message):
        attention(x[:, :3], x[:, :3], x[:, :3], cp=cp)
