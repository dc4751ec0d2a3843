"""The load balancing loss of a mixture of experts, for a batch whose tokens are spread over ranks.

For each expert it multiplies the fraction of tokens that are routed to it and its mean probability (equations 4 to 6 of
https://arxiv.org/abs/2101.03961). The mean over ranks of such products is not the product of the means over all tokens,
so both factors are averaged over ranks before they are multiplied.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.mixtral import modeling_mixtral

from ringattn.hf.batch import KEYWORD, ShardedBatch, padded
from ringattn.hf.outputs import mean_over_ranks
from ringattn.no_compile import no_compile
from ringattn_core.errors import UnsupportedError

# The function of transformers for this loss: each such model has a copy in its module. TRL uses that of Mixtral.
_NAME = "load_balancing_loss_func"


class LocalRouterLogits(tuple[Tensor, ...]):
    """Router logits of this rank's tokens, (rows * local tokens, experts) of each layer, with their batch."""

    batch: ShardedBatch


def hooks(model: PreTrainedModel) -> list[RemovableHandle]:
    """Make the model's router loss that of all ranks, if its module has the function `_NAME`."""
    if not _is_known(model):
        return []
    for namespace in (_namespace(model), vars(modeling_mixtral)):
        if not hasattr(namespace[_NAME], "__wrapped__"):
            namespace[_NAME] = _over_ranks(namespace[_NAME])
    return [model.base_model.register_forward_hook(_mark, with_kwargs=True)]


def check(model: nn.Module, arguments: dict[str, Any], config: PretrainedConfig) -> None:
    """Raise UnsupportedError if another router loss is asked for."""
    asked = arguments.get("output_router_logits")
    if not (getattr(config.get_text_config(), "output_router_logits", False) if asked is None else asked):
        return
    if not _is_known(model):
        raise UnsupportedError(
            f"{type(model).__name__} got output_router_logits=True, and has model-specific code for the loss that "
            "balances experts, which would use only the tokens of this rank. Set config.output_router_logits to False."
        )


def _namespace(model: nn.Module) -> dict[str, Any]:
    return inspect.unwrap(type(model).forward).__globals__  # type: ignore[no-any-return]


def _is_known(model: nn.Module) -> bool:
    """Does the model's module have a copy of Mixtral's function, and not another loss or none?"""
    own = _namespace(model).get(_NAME)
    return own is not None and _said(own) == _said(getattr(modeling_mixtral, _NAME))


def _said(function: Callable[..., Any]) -> tuple[bytes, tuple[str, ...], tuple[object, ...]]:
    code: CodeType = inspect.unwrap(function).__code__
    # The first constant is the docstring, and the code of a comprehension is never equal to another's.
    return code.co_code, code.co_names, tuple(each for each in code.co_consts[1:] if not isinstance(each, CodeType))


@no_compile
def _mark(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    batch, logits = kwargs.get(KEYWORD), getattr(output, "router_logits", None)
    if isinstance(batch, ShardedBatch) and logits is not None:
        output["router_logits"] = marked = LocalRouterLogits(logits)
        marked.batch = batch


def _over_ranks(original: Callable[..., Any]) -> Callable[..., Any]:
    """The loss of all ranks for logits from `_mark`, and the original function for those of models in one process."""

    @no_compile
    @wraps(original)
    def load_balancing_loss(
        gate_logits: Any, num_experts: Any = None, top_k: int = 2, attention_mask: Any = None
    ) -> Any:
        if isinstance(gate_logits, LocalRouterLogits):
            return _loss(gate_logits, num_experts, top_k)
        return original(gate_logits, num_experts, top_k, attention_mask)

    return load_balancing_loss


def _loss(layers: LocalRouterLogits, num_experts: int, top_k: int) -> Tensor:
    """The loss of the tokens of all ranks, on every rank. Its gradient is averaged over ranks, like any other.

    The means are over all tokens of all layers, without padding.
    """
    batch, device = layers.batch, layers[0].device
    dtype = torch.promote_types(layers[0].dtype, torch.float32)
    weights = _real(batch, device).to(dtype)
    counts, probabilities = (torch.zeros(num_experts, dtype=dtype, device=device) for _ in range(2))
    for logits in layers:
        routed = logits.to(device).softmax(dim=-1)
        chosen = routed.topk(top_k, dim=-1).indices
        counts = counts.scatter_add(0, chosen.flatten(), weights.repeat_interleave(top_k))
        probabilities = probabilities + (routed.to(dtype) * weights[:, None]).sum(dim=0)
    tokens = weights.sum()[None] * len(layers)
    sums = mean_over_ranks(torch.cat([tokens, counts, probabilities]), batch.row.communicator)
    # A factor that is the same on all ranks, such as 1 / cp_size, cancels.
    shares, means = sums[1:].view(2, num_experts) / sums[0]
    return num_experts * torch.dot(shares, means)


def _real(batch: ShardedBatch, device: torch.device) -> Tensor:
    """Which of this rank's tokens are not padding: (rows * local tokens,)."""
    mask = torch.ones(batch.rows, batch.tokens, device=device) if batch.mask is None else batch.mask
    return batch.shard(padded(mask, batch.length, 1, 0)).flatten().bool()
