"""What the oracle says of numbers that are not finite is what PyTorch's own dense attention says of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import oracle

TOKENS = 9
ODD = [torch.nan, torch.inf, -torch.inf]


def draw(where: str, odd: float) -> dict[str, Tensor]:
    """q, k and v (tokens, heads, dim), with one odd number and one token of them."""
    torch.manual_seed(0)
    x = {name: torch.randn(TOKENS, 2, 3, dtype=torch.float64) for name in "qkv"}
    x[where][2, 0, 1] = odd
    x[where][5, 1] = odd
    return {name: tensor.requires_grad_() for name, tensor in x.items()}


def found(out: Tensor, x: dict[str, Tensor]) -> list[Tensor]:
    """out and all gradients."""
    dout = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad((out * dout).sum(), list(x.values()))]


def ours(x: dict[str, Tensor], window: tuple[int, int]) -> list[Tensor]:
    borders = (0, TOKENS)
    return found(oracle.attention(*x.values(), borders, borders, window=window, softmax_scale=0.6, apart=True)[0], x)


def pytorch(x: dict[str, Tensor], causal: bool) -> list[Tensor]:
    with sdpa_kernel(SDPBackend.MATH):
        given = (tensor.transpose(0, 1) for tensor in x.values())
        return found(scaled_dot_product_attention(*given, is_causal=causal, scale=0.6).transpose(0, 1), x)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_where_every_row_sees_every_key_they_are_the_same(where: str, odd: float) -> None:
    x = draw(where, odd)
    for mine, theirs in zip(ours(x, (-1, -1)), pytorch(x, causal=False), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_under_a_mask_pytorch_has_more_nan_by_0_times_nan_and_never_less(where: str, odd: float) -> None:
    x = draw(where, odd)
    mine, theirs = ours(x, (-1, 0)), pytorch(x, causal=True)
    for a, b in zip(mine, theirs, strict=True):
        common = a.isfinite() & b.isfinite()
        torch.testing.assert_close(a[common], b[common], rtol=0, atol=1e-12)
        assert not (b.isfinite() & ~a.isfinite()).any()
    # Rows that see what is odd: those from its token on, or that one alone.
    rows = {"q": [[2], [5]]}.get(where, [list(range(2, TOKENS)), list(range(5, TOKENS))])
    for head, seeing in enumerate(rows):
        others = [row for row in range(TOKENS) if row not in seeing]
        assert mine[0][others, head].isfinite().all()
        torch.testing.assert_close(mine[0][seeing, head], theirs[0][seeing, head], rtol=0, atol=1e-12, equal_nan=True)
