"""What every fast kernel for NVIDIA GPUs asks of its inputs: a device that is new enough, and 16 bits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

_MAJOR = {"Ampere": 8, "Hopper": 9}  # of the compute capability


def why_unsupported(q: Tensor, generation: Literal["Ampere", "Hopper"], *, or_newer: bool = True) -> str | None:
    """Why a kernel that was made for a generation of GPUs cannot take such queries; None if it can."""
    wanted = _MAJOR[generation]
    found = torch.cuda.get_device_capability(q.device)[0] if q.device.type == "cuda" else 0
    if found < wanted or (found > wanted and not or_newer):
        return f"it needs an NVIDIA GPU of the {generation} generation{' or newer' if or_newer else ''}"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"it takes bfloat16 and float16, not {q.dtype}"
    return None
