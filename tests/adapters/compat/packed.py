"""A model on a share of a packed row, as programs with ring-flash-attention run it, beside the same in one process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adapters.hf import compare
from adapters.hf.models import VOCABULARY
from ringattn.compat import ring_flash_attn
from ringattn.lengths import sequence_positions

BORDERS = 0, 8, 24, 40


def mine(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """This rank's share along dimension 1: contiguous, as the llama 3 functions have it."""
    return x.chunk(dist.get_world_size(group), dim=1)[dist.get_rank(group)]


def errors(
    model: nn.Module,
    borders: Sequence[int] = BORDERS,
    group: dist.ProcessGroup | None = None,
    *,
    update: bool = True,
) -> dict[str, float]:
    """How far a substituted model's logits and summed gradients are from its own in one process, relatively."""
    ids, positions = compare.tokens(1, borders[-1]), sequence_positions(borders)[None]
    dout = torch.randn(1, borders[-1], VOCABULARY, generator=torch.Generator().manual_seed(1))
    expected = passes(model, ids, positions, dout)
    to_flash(model)
    if update:
        group = group or dist.group.WORLD
        ring_flash_attn.update_ring_flash_attn_params(torch.tensor(borders, dtype=torch.int32), group)
    logits, gradient = passes(model, *(mine(x, group) for x in (ids, positions, dout)))
    dist.all_reduce(gradient, group=group)
    return {
        "logits": compare.relative(logits, mine(expected[0], group)),
        "gradient": compare.relative(gradient, expected[1]),
    }


def to_flash(model: nn.Module) -> None:
    """What loading with attn_implementation="flash_attention_2" does where flash-attn is installed."""
    model.config._attn_implementation = "flash_attention_2"  # type: ignore[union-attr]


def passes(model: nn.Module, ids: Tensor, positions: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and all gradients in one vector, which the model does not keep."""
    logits = model(ids, position_ids=positions, use_cache=False).logits
    gradients = torch.autograd.grad(logits, list(model.parameters()), dout, allow_unused=True, materialize_grads=True)
    return logits.detach(), torch.cat([x.flatten() for x in gradients])
