"""Attention under any union of bands, on several ranks, with every option, against the oracle."""

from __future__ import annotations

from functools import reduce
from itertools import product
from operator import or_
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.sharded import assert_exact, draw, dropped, rows_of, solve, solve_native, truth
from core.plan.test_masks import NAMED, Rule
from ringattn import ContextParallel, attention, masks
from ringattn.masks import Mask
from ringattn_comms.communicator import Communicator, SingleRank
from ringattn_core.plan.tile import FAR, Tile

LAYOUTS, ROUTES = ("contiguous", "zigzag", "balanced", "striped"), ("auto", "ring", "waves", "waves(3)", "gather")
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
SLOPES = torch.tensor([0.5, 0.1, 0.0, 1.0], dtype=torch.float64)


def matrix(mask: Mask) -> Tensor:
    """(tokens, tokens): which cells are live."""
    return torch.tensor([list(row) for row in mask.dense()], dtype=torch.bool)


def drawn(seed: int, n: int, bands: int) -> Mask:
    """A random union of bands."""
    random = Random(seed)

    def band() -> Mask:
        q, k = (range(*sorted(random.sample(range(n + 1), 2))) for _ in range(2))
        low, high = (random.choice((far, random.randint(-n, n))) for far in (-FAR, FAR))
        return Mask((Tile(q, k, low, high),), n, n)

    return reduce(or_, (band() for _ in range(bands)), Mask((), n, n))


def by_rule(rule: Rule, n: int) -> Tensor:
    return torch.tensor([[bool(rule(q, k)) for k in range(n)] for q in range(n)])


@pytest.mark.parametrize("name", NAMED)
def test_the_masks_that_magiattention_names(name: str) -> None:
    """On any layout and route, and alone: out, lse and all gradients."""
    mask, rule = NAMED[name]
    whole = draw(12)
    expected = truth(whole, live=by_rule(rule, 12))
    assert_exact(solve_native(1, whole, call_mask=mask), expected)
    for size, layout, route in product((2, 3), LAYOUTS, ROUTES):
        assert_exact(solve_native(size, whole, layout=layout, route=route, mask=mask), expected)


@pytest.mark.parametrize("name", NAMED)
def test_a_fast_kernel_computes_what_it_can_and_the_reference_all_else(name: str) -> None:
    """In float32 no launch is computed wrongly, whichever kernel supports it."""
    mask, rule = NAMED[name]
    whole = draw(12, dtype=torch.float32)
    found = solve_native(2, whole, mask=mask)
    assert_exact(found, truth(whole, live=by_rule(rule, 12)), 1e-5)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(1, 40),
    bands=st.integers(0, 6),
    size=st.integers(1, 5),
    layout=st.sampled_from(LAYOUTS),
    route=st.sampled_from(ROUTES),
    heads=st.sampled_from([(4, 2, 2), (4, 4, 1), (4, 1, 1), (4, 2, 1)]),  # query heads, kv heads, head groups
    per_sequence=st.booleans(),
    softcap=st.sampled_from([0.0, 2.0]),
    sinks=st.booleans(),
    slopes=st.booleans(),
    dropout_p=st.sampled_from([0.0, 0.3]),
    rows=st.sampled_from([(), (1,), (2,), (3,)]),
    each=st.booleans(),
)
def test_random_masks_with_every_option(seed: int, n: int, bands: int, size: int, **drawn_options: Any) -> None:
    asked = drawn_options
    rows, (heads, kv_heads, head_groups) = asked["rows"], asked["heads"]
    whole = draw(n, rows, heads=heads, kv_heads=kv_heads)
    count = rows[0] if rows and asked["each"] else 1
    given_masks = [drawn(seed + row, n, bands) for row in range(count)]
    live = torch.stack([matrix(mask) for mask in given_masks]) if count > 1 else matrix(given_masks[0])
    options: dict[str, Any] = {
        "softcap": asked["softcap"],
        "sinks": SINKS if asked["sinks"] else None,
        "alibi_slopes": SLOPES if asked["slopes"] else None,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randint", lambda *_: torch.tensor(seed))  # threads share one generator
        kept = {"kept": dropped(whole, asked["dropout_p"])} if asked["dropout_p"] else {}
        expected = truth(whole, live=live, **kept, **options)
        how = {name: asked[name] for name in ("layout", "route", "per_sequence", "dropout_p")}
        mask: Any = given_masks if count > 1 else given_masks[0]
        found = solve_native(size, whole, mask=mask, head_groups=head_groups, **how, **options)
    assert_exact(found, expected, 1e-10)


SHORTHANDS: dict[str, tuple[dict[str, Any], Mask]] = {
    "nothing": ({}, masks.full(24)),
    "causal": ({"causal": True}, masks.causal(24)),
    "window": ({"window_size": (3, 2)}, masks.window(24, 3, 2)),
    "causal window": ({"window_size": (5, -1), "causal": True}, masks.window(24, 5)),
    "open left": ({"window_size": (-1, 4)}, masks.window(24, -1, 4)),
    "packed": ({"cu_seqlens": [0, 7, 7, 16, 24]}, masks.packed([7, 0, 9, 8], window=(-1, -1))),
    "packed causal": ({"cu_seqlens": [0, 7, 16, 24], "causal": True}, masks.packed([7, 9, 8])),
    "packed window": (
        {"cu_seqlens": [0, 7, 16, 24], "window_size": (2, 1)},
        masks.packed([7, 9, 8], window=(2, 1)),
    ),
}


@pytest.mark.parametrize("name", SHORTHANDS)
def test_shorthands_are_the_masks_that_they_make(name: str) -> None:
    """With the same borders, by which the layout divides, and without them."""
    shorthand, mask = SHORTHANDS[name]
    borders = {key: shorthand[key] for key in ("cu_seqlens",) if key in shorthand}
    whole = draw(24)
    for size, layout in product((1, 2, 3), LAYOUTS):
        expected = solve_native(size, whole, layout=layout, **shorthand)
        for given_mask in ({"mask": mask, **borders}, {"call_mask": mask}, {"call_mask": [mask] * 2, **borders}):
            assert_exact(solve_native(size, whole, layout=layout, **given_mask), expected)


def test_a_row_that_sees_nothing_is_zero_and_its_lse_is_minus_infinity() -> None:
    mask = masks.causal(12) - masks.Mask((Tile(range(4, 7), range(12)),), 12, 12)
    whole = draw(12)
    found = solve_native(3, whole, mask=mask)
    assert_exact(found, truth(whole, live=matrix(mask)))
    assert (found.out[:, 4:7] == 0).all() and (found.lse[..., 4:7] == -torch.inf).all()
    assert (found.dq[:, 4:7] == 0).all() and found.lse.isfinite().sum() == 2 * 4 * 9
    nothing = solve_native(2, whole, mask=masks.Mask((), 12, 12))
    assert all((x == 0).all() for x in (nothing.out, nothing.dq, nothing.dk, nothing.dv))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_without_rows(layout: str) -> None:
    found = solve_native(2, draw(12, (0,)), layout=layout, mask=masks.prefix(12, 5))
    assert found.out.shape == (0, 12, 4, 8) and found.dq.shape == (0, 12, 4, 8)


def test_slopes_of_every_sequence_under_a_mask() -> None:
    """The borders say which slopes a token has, the mask what it sees."""
    borders, live = [0, 9, 16, 31], masks.packed([9, 7, 15]) | masks.two_way([range(2, 6), range(20, 27)], 31)
    whole, slopes = draw(31, ()), torch.rand(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    by_token = slopes.repeat_interleave(torch.tensor(borders).diff(), dim=0)
    expected = truth(whole, live=matrix(live), alibi_slopes=by_token)
    for layout in LAYOUTS:
        found = solve_native(3, whole, layout=layout, cu_seqlens=borders, mask=live, alibi_slopes=slopes)
        assert_exact(found, expected)


def test_the_gradient_of_sinks_under_a_mask() -> None:
    """The ranks' shares add up to that of one rank, which automatic differentiation of dense attention has too."""
    mask, whole = masks.prefix(24, 9) | masks.two_way([range(12, 17)], 24), draw(24, ())
    shares = [SINKS.clone().requires_grad_() for _ in range(3)]

    def attend(q: Tensor, k: Tensor, v: Tensor, comm: Communicator) -> tuple[Tensor, Tensor]:
        cp = ContextParallel(comm, mask=mask)
        out, lse = attention(q, k, v, cp=cp, sinks=shares[comm.rank], return_lse=True)
        return out, lse

    found = solve(3, attend, whole, rows_of(ContextParallel(None), 24, 3))
    assert_exact(found, truth(whole, live=matrix(mask), sinks=SINKS))
    sinks, (q, k, v) = SINKS.clone().requires_grad_(), whole[:3]
    scores = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(2, 1)) * 8**-0.5
    scores = torch.cat([scores.masked_fill(~matrix(mask), -torch.inf), sinks[:, None, None].expand(-1, 24, 1)], -1)
    out = torch.einsum("hij,jhd->ihd", scores.softmax(-1)[..., :-1], v.repeat_interleave(2, 1))
    (dense,) = torch.autograd.grad((out, scores.logsumexp(-1)), sinks, (whole.dout, whole.dlse))
    assert (torch.stack([x.grad for x in shares if x.grad is not None]).sum(0) - dense).abs().max() < 1e-11


def test_layers_with_other_masks_share_the_tokens_of_one_layout() -> None:
    """The mask of a call says what is live in it; who holds which tokens is said by the ContextParallel alone."""
    whole, text = draw(24), masks.causal(24)
    for layout in LAYOUTS:
        for layer in (masks.window(24, 4), masks.full(24), masks.chunked(24, 8), text):
            found = solve_native(3, whole, layout=layout, mask=text, call_mask=layer)
            assert_exact(found, truth(whole, live=matrix(layer)))


def test_a_mask_says_how_long_the_sequence_is() -> None:
    """So that lengths need not divide evenly, nor be said in cu_seqlens."""
    mask, whole = masks.prefix(31, 9), draw(31)
    for layout in LAYOUTS:
        assert_exact(solve_native(4, whole, layout=layout, mask=mask), truth(whole, live=matrix(mask)))
    cp = ContextParallel(SingleRank(), mask=mask)
    assert cp.shard(whole.q).shape == whole.q.shape and torch.equal(cp.unshard(whole.q), whole.q)


@pytest.mark.parametrize(("at", "value"), [(5, torch.nan), (14, torch.inf)])
def test_numbers_that_are_not_finite_reach_the_rows_that_see_them_and_no_others(at: int, value: float) -> None:
    mask = masks.causal(24) | masks.two_way([range(3, 8), range(12, 20)], 24)
    whole = draw(24, ())
    whole.k[at] = value
    assert_exact(solve_native(3, whole, mask=mask), truth(whole, live=matrix(mask), apart=True))


def test_a_named_kernel_refuses_a_band_that_it_lacks() -> None:
    """PyTorch's kernel for CPUs takes causal and full tiles; other bands go to the reference, or are refused."""
    whole, low = draw(12, ()), masks.causal(12) | masks.two_way([range(2, 7)], 12)
    assert_exact(
        solve_native(2, whole, mask=masks.packed([5, 7]), kernel="torch_flash"),
        truth(whole, live=matrix(masks.packed([5, 7]))),
    )
    with pytest.raises(
        ValueError, match=r"'torch_flash' cannot compute this: .*needs the window \(0, -1\).*'reference'"
    ):
        attention(*whole[:3], cp=ContextParallel(SingleRank(), kernel="torch_flash"), mask=low)
