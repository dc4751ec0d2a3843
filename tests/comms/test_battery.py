"""The battery of real processes on CPUs: over gloo, and through the calls that CuPy's NCCL would get."""

from __future__ import annotations

import battery
import gloo_nccl
import processes


def over_a_stand_in() -> dict[str, float]:
    gloo_nccl.install()
    return battery.run("cupy_nccl", "cpu")


def test_torch_dist() -> None:
    assert all(found.keys() == battery.BATTERY.keys() for found in processes.run(2, battery.run, "torch_dist", "cpu"))


def test_cupy_nccl() -> None:
    assert all(found.keys() == battery.BATTERY.keys() for found in processes.run(2, over_a_stand_in))
