"""NaN and inf in what users give: seen in out, lse and gradients where dense attention has them, and nowhere else."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from adapters.sharded import Whole, assert_exact, draw, solve_native, truth
from ringattn import attention

ODD = [torch.nan, torch.inf, -torch.inf]
KERNELS = ["reference", "torch_flash"]


def spoiled(whole: Whole, name: str, odd: float) -> Whole:
    """One number in the middle of the first sequence, and a whole token of a head after it."""
    x = getattr(whole, name).clone()
    first = x[0] if x.dim() == 4 else x
    first[3, 1, 2], first[5, 0] = odd, odd
    return whole._replace(**{name: x})


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_batch(kernel: str, name: str, odd: float) -> None:
    """The second row of the batch has no fault, and is as without one."""
    whole = spoiled(draw(24), name, odd)
    for (size, layout, route), causal in product(
        ((1, "contiguous", "ring"), (2, "zigzag", "waves"), (3, "striped", "gather")), (True, False)
    ):
        found = solve_native(size, whole, layout=layout, route=route, kernel=kernel, causal=causal)
        assert_exact(found, truth(whole, causal=causal, apart=True))
        assert all(x[1].isfinite().all() for x in found) and not found.out[0].isfinite().all()


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_packed_documents(kernel: str, name: str, odd: float) -> None:
    whole, borders = spoiled(draw(36, ()), name, odd), [0, 11, 12, 36]
    for (layout, route), causal in product((("zigzag", "ring"), ("balanced", "waves")), (True, False)):
        found = solve_native(3, whole, cu_seqlens=borders, layout=layout, route=route, kernel=kernel, causal=causal)
        assert_exact(found, truth(whole, borders, causal=causal, apart=True))
        assert found.out[11:].isfinite().all() and found.dq[11:].isfinite().all() and found.dk[11:].isfinite().all()


@pytest.mark.parametrize("options", [{"softcap": 1.5}, {"window_size": (4, 2)}, {"dropout_p": 0.2}], ids=str)
def test_a_loss_shows_it(options: dict[str, object]) -> None:
    """What was wrong once: out was 0 and finite, and lse alone NaN."""
    for name, odd in product("qkv", (torch.nan,)):
        q, k, v = spoiled(draw(24), name, odd)[:3]
        out, lse = attention(q, k, v, return_lse=True, **options)
        assert out.sum().isnan()
        assert name == "v" or lse.sum().isnan()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_whose_scores_are_all_minus_infinity_is_nan_and_one_that_sees_no_key_is_0(kernel: str) -> None:
    """Four queries against two keys, aligned to the bottom right: the first two see nothing."""
    q, k, v = torch.ones(1, 4, 1, 3), -torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 3)
    k[0, 0] = -torch.inf
    out, lse = attention(q, k, v, causal=True, return_lse=True)
    assert (out[0, :2] == 0).all() and (lse[0, 0, :2] == -torch.inf).all()
    assert out[0, 2].isnan().all() and lse[0, 0, 2] == -torch.inf
    assert (out[0, 3] == 1).all() and lse[0, 0, 3].isfinite()
