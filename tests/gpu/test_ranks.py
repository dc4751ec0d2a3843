"""Whole attentions on one GPU, ranks as threads: every kernel, both passes, within twice plain PyTorch's error."""

from __future__ import annotations

import pytest
import torch

import ringattn
from ringattn_comms.backends.threads import run

HEADS, KV_HEADS, DIM, TOKENS = 8, 2, 128, 1024


def dense(q, k, v, dout, window, dtype):
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    keys, values = (x.repeat_interleave(group, dim=2).transpose(1, 2) for x in (k, v))
    scores = q.transpose(1, 2) @ keys.mT * DIM**-0.5
    apart = torch.arange(q.shape[1], device="cuda")[None] - torch.arange(q.shape[1], device="cuda")[:, None]
    dead = (apart > 0) | (apart < -window if window >= 0 else torch.zeros_like(apart, dtype=torch.bool))
    out = (torch.softmax(scores.masked_fill(dead, -torch.inf), dim=-1) @ values).transpose(1, 2)
    return out.detach(), *torch.autograd.grad((out * dout.to(dtype)).sum(), (q, k, v))


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["torch_flash", "flash_attn_4", "cudnn"])
@pytest.mark.parametrize("route", ["ring", "waves", "gather"])
@pytest.mark.parametrize(("size", "batch", "window"), [(1, 1, -1), (2, 2, -1), (4, 1, 300), (3, 1, -1)])
def test_attention(kernel: str, route: str, size: int, batch: int, window: int) -> None:
    def draw(heads: int) -> torch.Tensor:
        return torch.randn(batch, TOKENS + 8 * size, heads, DIM, device="cuda").bfloat16()

    q, k, v, dout = draw(HEADS), draw(KV_HEADS), draw(KV_HEADS), draw(HEADS)
    borders = [0, q.shape[1]]

    def main(comm):
        cp = ringattn.ContextParallel(comm, "zigzag", route, cu_seqlens=borders, kernel=kernel)
        parts = [x.requires_grad_() for x in cp.shard(q, k, v)]
        out = ringattn.attention(*parts, cp=cp, causal=True, window_size=(window, 0))
        grads = torch.autograd.grad((out * cp.shard(dout)).sum(), parts)
        return [cp.unshard(x.detach()) for x in (out, *grads)]

    try:
        results = run(size, main)
    except ringattn.UnsupportedError as error:
        pytest.skip(str(error))
    exact, rough = (dense(q, k, v, dout, window, dtype) for dtype in (torch.float64, torch.bfloat16))
    for name, got, want, other in zip(("out", "dq", "dk", "dv"), results[0], exact, rough, strict=True):
        error, allowed = (got - want).abs().max().item(), 2 * (other - want).abs().max().item()
        assert error <= allowed + 1e-4, f"{name}: {error} > {allowed}"
