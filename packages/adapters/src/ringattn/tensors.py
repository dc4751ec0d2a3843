"""The first thing that is asked of every argument: is it a tensor at all?"""

from __future__ import annotations

from torch import Tensor


def check_tensors(rule: str, *given: object) -> None:
    """Raise TypeError with the rule, such as "q must be a tensor", unless all that was given are tensors."""
    if all(isinstance(x, Tensor) for x in given):
        return
    kinds = [type(x) for x in given]
    hint = (
        " torch.from_numpy makes a tensor of a NumPy array."
        if any(kind.__module__ == "numpy" for kind in kinds)
        else ""
    )
    raise TypeError(f"{rule}, got {', '.join(kind.__name__ for kind in kinds)}.{hint}")
