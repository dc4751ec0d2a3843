"""Log-probabilities of targets from shards of logits, for losses outside the model that need nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ringattn.hf import unsupported
from ringattn.hf.batch import ShardedBatch, padded
from ringattn.hf.hook import Hooks
from ringattn.hf.inputs import IGNORED, shifted

_CHUNK = 2**22  # logits that are computed with at a time: 16 MiB in float32


def token_logprobs(model: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """The log-probability of every target, (rows, tokens - 1), whole on every rank; 0 where the label is -100.

    model: parallelized, or not, so that the same loss runs in one process; or a module around it, such as DDP.
    logits: those of its last forward pass, (rows, local tokens, vocabulary), or whole ones, as the model returned them.
    labels: the whole batch's, (rows, tokens) int64, as the model takes them: entry t is predicted by token t - 1.

    Entry t of the result belongs to labels[:, t + 1]. It is float32, or float64 for logits of float64. The logits are
    neither gathered nor copied; the backward pass allocates their gradient, which is as large as they are. Gradients
    are to be averaged over the ranks, as `parallelize` says.

    Raises ValueError for shapes that are not those of the model's last batch. DPO, ORPO and SimPO are such losses: Meng
    et al., https://arxiv.org/abs/2405.14734.
    """
    hooks = Hooks.of(unsupported.outermost(model))
    batch = hooks.last if hooks is not None and "logits" not in hooks.whole else None
    _check(logits, labels, batch)
    targets = shifted(labels)
    if batch is None:
        return _logprobs(logits, targets)[:, :-1]
    local = batch.shard(padded(targets, batch.length, 1, IGNORED))
    return batch.unshard(_logprobs(logits, local))[:, :-1]


def _check(logits: Tensor, labels: Tensor, batch: ShardedBatch | None) -> None:
    rows, tokens = tuple(labels.shape) if batch is None else (batch.rows, batch.tokens)
    local = tokens if batch is None else batch.local
    if tuple(labels.shape) != (rows, tokens) or tuple(logits.shape[:-1]) != (rows, local):
        raise ValueError(
            f"token_logprobs takes the logits that the model returned, ({rows}, {local}, vocabulary), and the labels "
            f"of the whole batch, ({rows}, {tokens}), got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )


def _logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    found: Tensor = _Logprobs.apply(logits, targets)  # type: ignore[no-untyped-call]
    return found


class _Logprobs(torch.autograd.Function):
    """From logits (..., vocabulary) and targets (...): (...).

    Computed in chunks, and again in the backward pass, because autograd would keep a float32 copy of all logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        found = torch.empty(targets.numel(), dtype=dtype, device=logits.device)
        for some, x, index in _chunks(logits, targets):
            found[some] = x.to(dtype).log_softmax(dim=-1).gather(1, index).squeeze(1)
        ctx.save_for_backward(logits, targets)
        return found.view_as(targets).masked_fill(targets == IGNORED, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        given = grads[0].masked_fill(targets == IGNORED, 0.0).flatten()[:, None]
        grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device).flatten(0, -2)
        for some, x, index in _chunks(logits, targets):
            part = x.to(given.dtype).softmax(dim=-1).mul_(-given[some])
            grad[some] = part.scatter_add_(1, index, given[some]).to(grad.dtype)
        return grad.view_as(logits), None


def _chunks(logits: Tensor, targets: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Chunks of tokens: which tokens, their logits, and the indices of the targets in the vocabulary."""
    flat, index = logits.flatten(0, -2), targets.clamp(min=0).flatten()[:, None]
    step = max(1, _CHUNK // flat.shape[1])
    for start in range(0, len(flat), step):
        some = slice(start, start + step)
        yield some, flat[some], index[some]
