"""The numbers of the H200 against the measurements that they stand for."""

from __future__ import annotations

import pytest

from ringattn_core.machine import H200, Link
from ringattn_core.shape import Shape

SHAPE = Shape(num_heads=32, num_kv_heads=8, head_dim=128)
MIB = 1 << 20


@pytest.mark.parametrize(
    ("tokens", "forward", "backward"), [(4096, 555, 574), (8192, 637, 610), (16384, 665, 609), (32768, 665, 620)]
)
def test_full_launches_are_as_fast_as_measured(tokens: int, forward: float, backward: float) -> None:
    for kernels, measured, is_backward in ((H200.forward, forward, False), (H200.backward, backward, True)):
        flop = SHAPE.flop(tokens * tokens, backward=is_backward)
        assert flop / kernels.time(flop) / 1e12 == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(
    ("link", "microseconds"),
    [
        (H200.two_sided, {1: 82, 8: 98, 32: 148, 128: 468}),
        (H200.collective, {1: 29, 8: 65, 32: 159, 128: 550}),
        (H200.one_sided, {8: 27, 32: 95, 128: 365}),
    ],
)
def test_messages_take_as_long_as_measured(link: Link, microseconds: dict[int, float]) -> None:
    for mebibytes, measured in microseconds.items():
        assert link.time(mebibytes * MIB) * 1e6 == pytest.approx(measured, rel=0.2)


def test_nothing_takes_no_time() -> None:
    assert H200.two_sided.time(0) == 0.0


def test_half_the_launch_takes_more_than_half_the_time() -> None:
    whole = SHAPE.flop(8192 * 8192, backward=False)
    assert H200.forward.time(whole / 2) > 0.5 * H200.forward.time(whole)
