"""Attention of one launch in plain PyTorch, in any dtype: the yardstick of error, and in float64 the oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from ringattn_core.plan.schedule import Launch


def plain(launch: Launch, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, scale: float, softcap: float = 0.0):
    """out, lse, dq, dk, dv of a launch's tiles, on whole tensors; rows and columns of no tile are 0 (lse -inf)."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    out, lse = torch.zeros_like(dout), q.new_full((q.shape[1], len(q)), -torch.inf)
    for tile in launch.tiles:
        rows, columns = slice(tile.q.start, tile.q.stop), slice(tile.k.start, tile.k.stop)
        keys, values = (x[columns].repeat_interleave(group, dim=1).transpose(0, 1) for x in (k, v))
        scores = q[rows].transpose(0, 1) @ keys.mT * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        i = torch.arange(tile.q.start, tile.q.stop, device=q.device)[:, None]
        j = torch.arange(tile.k.start, tile.k.stop, device=q.device)[None]
        scores = scores.masked_fill((j - i < tile.low) | (j - i > tile.high), -torch.inf)
        out[rows] = (torch.softmax(scores, dim=-1) @ values).transpose(0, 1)
        lse[:, rows] = torch.logsumexp(scores, dim=-1)
    grads = torch.autograd.grad((out * dout).sum(), (q, k, v))
    return out.detach(), lse.detach(), *grads
