"""A model on a group of ranks beside the same model in one process: loss, logits and every gradient."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import ringattn.hf
from adapters.hf.models import VOCABULARY

Errors = dict[str, float]


def tokens(rows: int = 2, length: int = 21, seed: int = 0) -> Tensor:
    """Random token ids, (rows, length), the same on every rank; none of the special ones."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """The norm of the difference, against that of what is expected, or against `least` where that is more.

    It is inf where either has a NaN: `max` and `>` would pass over that.
    """
    assert found.shape == expected.shape, (found.shape, expected.shape)
    error = (found - expected).norm().item() / (max(expected.norm().item(), least) or 1.0)
    return math.inf if math.isnan(error) else error


def average(model: nn.Module) -> None:
    """What DDP and FSDP do with gradients, and a bare loop has to do itself."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # a rank without a token for an expert has no gradient for it
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    # All in one message: hundreds of small ones would take longer than the model.
    together = torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])
    dist.all_reduce(together)
    parts = together.div_(dist.get_world_size()).split([parameter.numel() for parameter in trained])
    for parameter, part in zip(trained, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def gradients(model: nn.Module, expected: nn.Module) -> Errors:
    """The relative error of every gradient, by name, after they were averaged."""
    average(model)
    return beside({name: each.grad for name, each in model.named_parameters() if each.grad is not None}, expected)


def beside(found: dict[str, Tensor], expected: nn.Module) -> Errors:
    """The relative error of whole gradients, by the names of their parameters.

    Some gradients are 0 but for rounding, that of a bias of keys for one: these count against a tenth of the largest.
    """
    others = {name: other.grad for name, other in expected.named_parameters() if other.grad is not None}
    least = max(grad.norm().item() for grad in others.values()) / 10
    return {name: relative(grad, others.get(name, torch.zeros_like(grad)), least) for name, grad in found.items()}


def worst(errors: Errors) -> Errors:
    """The largest of them, under its name."""
    name = max(errors, key=lambda key: errors[key])
    return {name: errors[name]}


def errors(
    model: nn.Module,
    inputs: dict[str, Any],
    expected: dict[str, Any] | None = None,
    *,
    real: Tensor | None = None,
    **how: Any,
) -> Errors:
    """What differs between `model` on all ranks and a copy of it in this process: relative errors, by what they are of.

    inputs: the arguments of both, or of the first, where `expected` has those of the second. real: (rows, tokens), the
    tokens whose logits mean something. how: for `parallelize`.
    """
    alone = copy.deepcopy(model)
    # With a cache transformers would not see that position_ids restart.
    reference = alone(**(inputs if expected is None else expected), use_cache=False)
    reference.loss.backward()
    output = ringattn.hf.parallelize(model, **how)(**inputs)
    output.loss.backward()
    logits = ringattn.hf.unshard(model, output.logits.detach())
    kept = torch.ones(logits.shape[:2], dtype=torch.bool) if real is None else real
    found = {
        "loss": relative(output.loss, reference.loss),
        "logits": relative(logits[kept], reference.logits.view(logits.shape)[kept].detach()),
    }
    return found | worst(gradients(model, alone))
