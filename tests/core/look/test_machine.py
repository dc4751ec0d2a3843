"""The numbers of H100 and H200 against the measurements that they stand for: see dev/LOG.md, 2026-11-25 and 26."""

from __future__ import annotations

import pytest

from ringattn_core.kernels.choose import kernel_named
from ringattn_core.look.machine import H100, H200, Link, Machine, machine_of
from ringattn_core.look.shape import Shape
from ringattn_core.look.simulate import predict
from ringattn_core.plan.layout import contiguous
from ringattn_core.plan.planner import plan_all
from ringattn_core.plan.route import ring

SHAPE = Shape(num_heads=32, num_kv_heads=8, head_dim=128)
MIB = 1 << 20


def milliseconds(machine: Machine, tokens: int) -> tuple[float, float]:
    """Of a forward and of a backward pass over one causal sequence on one GPU."""
    planned = plan_all(contiguous, ring, (0, tokens), 1, window=(-1, 0))
    first, both = (predict(planned, SHAPE, machine, backward=backward).time * 1e3 for backward in ((), planned))
    return first, both - first


@pytest.mark.parametrize(
    ("machine", "tokens", "forward", "backward"),
    [
        (H100, 8192, 0.795, 2.38),
        (H100, 16384, 3.02, 8.58),
        (H100, 65536, 50.5, 144.1),
        (H200, 8192, 0.794, 2.316),
        (H200, 16384, 3.038, 8.480),
        (H200, 65536, 50.02, 146.97),
    ],
)
def test_causal_launches_take_as_long_as_measured(
    machine: Machine, tokens: int, forward: float, backward: float
) -> None:
    """Milliseconds, of one GPU with FA4."""
    assert milliseconds(machine, tokens) == pytest.approx((forward, backward), rel=0.1)


@pytest.mark.parametrize(
    ("kernel", "forward", "backward"),
    [("cudnn", 3.40, 9.71), ("torch_flash", 6.23, 17.28)],
)
def test_other_kernels_take_as_long_as_measured(kernel: str, forward: float, backward: float) -> None:
    """Milliseconds for 16,384 tokens, causal, on an H100."""
    speed = kernel_named(kernel).speed
    assert speed is not None and milliseconds(H100.running(speed), 16384) == pytest.approx(
        (forward, backward), rel=0.05
    )


def test_a_machine_goes_by_the_name_of_its_device() -> None:
    assert machine_of("NVIDIA H100 80GB HBM3") is H100 and machine_of("NVIDIA H200") is H200
    assert machine_of("NVIDIA B300") is H200


@pytest.mark.parametrize(
    ("link", "microseconds"),
    [
        (H200.two_sided, {1: 82, 8: 98, 32: 148, 128: 468}),
        (H200.collective, {1: 29, 8: 65, 32: 159, 128: 550}),
    ],
)
def test_messages_take_as_long_as_measured(link: Link, microseconds: dict[int, float]) -> None:
    for mebibytes, measured in microseconds.items():
        assert link.time(mebibytes * MIB) * 1e6 == pytest.approx(measured, rel=0.2)


def test_nothing_takes_no_time() -> None:
    assert H200.two_sided.time(0) == 0.0
