"""Users' tensors: is each a plain tensor of this rank, in which shape and dtype, and how far are two apart?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HINTS = {
    "ndarray": "torch.from_numpy makes a tensor of a NumPy array.",
    "DTensor": "A DTensor says how it is sharded, and so does a ContextParallel: pass this rank's tokens as a plain "
    "tensor, cp.shard(x.full_tensor()), or x.to_local() where its shards are those of the layout (a Shard over the "
    "tokens is 'contiguous').",
    "NestedTensor": "Lay its texts end to end, x.values(), and pass their borders as cu_seqlens, x.offsets().",
}


def check_tensors(rule: str, *given: object) -> None:
    """Raise TypeError with the rule, such as "q must be a tensor", unless all that was given are plain tensors."""
    kinds = [_kind(x) for x in given]
    hints = [hint for name, hint in _HINTS.items() if name in kinds]
    if hints or not all(isinstance(x, Tensor) for x in given):
        raise TypeError(" ".join([f"{rule}, got {', '.join(kinds)}.", *hints]))


def _kind(x: object) -> str:
    return "NestedTensor" if isinstance(x, Tensor) and x.is_nested else type(x).__name__


def flattened(x: Tensor) -> Tensor:
    """(batch, tokens, ...) -> (batch * tokens, ...): the rows of a batch are sequences of one packed stream."""
    return x.flatten(0, 1) if x.dim() == 4 else x


def batched(lse: Tensor, q: Tensor) -> Tensor:
    """(num_heads, batch * tokens) -> (batch, num_heads, tokens), where q has a batch dimension."""
    return lse.view(len(lse), *q.shape[:2]).transpose(0, 1) if q.dim() == 4 else lse


def flattened_lse(lse: Tensor) -> Tensor:
    """(batch, num_heads, tokens) -> (num_heads, batch * tokens): the inverse of `batched`."""
    return lse.transpose(0, 1).flatten(1) if lse.dim() == 3 else lse


# Listed once, because torch.compile cannot trace the question in PyTorch 2.11.
_AUTOCASTING = {kind for kind in ("cpu", "cuda", "xpu", "mps", "hpu") if torch.amp.is_autocast_available(kind)}


def autocasts(device: torch.device) -> bool:
    """Is autocast on for tensors of a device?"""
    return device.type in _AUTOCASTING and torch.is_autocast_enabled(device.type)


def lowered(x: Tensor) -> Tensor:
    """x in the dtype in which autocast passes it to operations of low precision."""
    castable = x.is_floating_point() and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(x.device.type)) if castable else x


def distance(x: Tensor, y: Tensor) -> float:
    """The largest difference of two tensors of one shape; inf if it is NaN anywhere, which `max` would pass over."""
    return (x.double() - y.double()).abs().nan_to_num(nan=math.inf, posinf=math.inf).amax().item() if x.numel() else 0.0
