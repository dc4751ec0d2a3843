"""The first thing that is asked of every argument: is it a tensor at all, and one of this rank's numbers?"""

from __future__ import annotations

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
