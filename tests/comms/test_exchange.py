"""The exchange kernel on CPUs, by Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import interpreted


def test_ranks_write_meet_and_read() -> None:
    interpreted.run(Path(__file__).with_name("exchange.py"))
