"""The fused sums on CPUs, by Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import interpreted


def test_the_fused_sums_are_the_eager_ones() -> None:
    interpreted.run(Path(__file__).with_name("fused.py"))
