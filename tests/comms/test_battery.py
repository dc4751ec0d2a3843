"""The battery of real processes on CPUs, over gloo."""

from __future__ import annotations

import battery
import processes


def test_torch_dist() -> None:
    for took in processes.run(2, battery.run, ["torch_dist"], "cpu"):
        assert len(took) == len(battery.BATTERY)
