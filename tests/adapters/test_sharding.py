"""A division that a rank could not repeat from its share, or that loses a token, is refused."""

from __future__ import annotations

import pytest
import torch

from adapters.comms import Mute
from ringattn import attention, masks
from ringattn.context_parallel import ContextParallel
from ringattn.masks import Mask
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


@pytest.mark.parametrize(
    "given",
    [
        masks.packed([700, 260, 64], window=(99, 0)),
        masks.causal(1024) | masks.two_way([range(600, 1000)], 1024),
        [masks.two_way([range(300)], 1024), masks.causal(1024)],
    ],
    ids=["windows", "image", "one for each row"],
)
def test_balanced_is_even_to_the_work_of_the_mask(given: Mask | list[Mask]) -> None:
    """In tokens, and in live cells to a row's; a mask of a call does not move the tokens."""
    rows = given if isinstance(given, list) else [given]
    work = [sum(row) for row in zip(*(mask.row_work() for mask in rows), strict=True)]
    held = []
    for rank in range(4):
        cp = ContextParallel(Mute(rank, 4), "balanced", mask=given)
        held.append(cp.shard(torch.arange(1024), dim=0).tolist())
        assert cp.position_ids(1024)[0].tolist() == held[-1]
    assert [len(rows) for rows in held] == [256] * 4
    assert sorted(row for rows in held for row in rows) == list(range(1024))
    cells = [sum(work[row] for row in rows) for rows in held]
    assert max(cells) <= 1.01 * sum(work) / 4 + max(work)
    by_causal_work = ContextParallel(Mute(0, 4), "balanced").shard(torch.arange(1024), dim=0).tolist()
    assert held[0] != by_causal_work
