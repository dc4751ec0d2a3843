"""The math and the schedule of exact attention over a sharded sequence; depends on nothing but torch.

What is imported here, the schedule half, does not even import torch.
"""

from ringattn_core.errors import UnsupportedError
from ringattn_core.look import draw
from ringattn_core.look.verify import verify
from ringattn_core.plan import masks
from ringattn_core.plan.layout import Sharding, balanced, contiguous, striped, windowed, zigzag
from ringattn_core.plan.planner import plan, plan_all
from ringattn_core.plan.route import double_ring, gather, ring, waves

__all__ = [
    "Sharding",
    "UnsupportedError",
    "balanced",
    "contiguous",
    "double_ring",
    "draw",
    "gather",
    "masks",
    "plan",
    "plan_all",
    "ring",
    "striped",
    "verify",
    "waves",
    "windowed",
    "zigzag",
]
