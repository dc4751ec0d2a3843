"""The math and the schedule of exact attention over a sharded sequence; depends on nothing but torch.

What is imported here, the schedule half, does not even import torch.
"""

from ringattn_core.errors import UnsupportedError
from ringattn_core.layout import Division, balanced, contiguous, striped, windowed, zigzag
from ringattn_core.planner import plan, plan_all
from ringattn_core.route import double_ring, gather, ring, waves
from ringattn_core.verify import verify

__all__ = [
    "Division",
    "UnsupportedError",
    "balanced",
    "contiguous",
    "double_ring",
    "gather",
    "plan",
    "plan_all",
    "ring",
    "striped",
    "verify",
    "waves",
    "windowed",
    "zigzag",
]
