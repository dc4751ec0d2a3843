"""Work as a number that does not depend on the machine: the bytecode instructions that a call executes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def instructions(call: Callable[[], object]) -> int:
    """How many instructions of Python a call executes; what a function written in C does counts as one.

    >>> small, large = (instructions(lambda n=n: [x * x for x in range(n)]) for n in (100, 1000))
    >>> 9 < large / small < 11
    True
    """
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
