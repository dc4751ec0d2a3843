"""What counts as exposed communication, on spans made up for it; what measures it needs two GPUs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from exposed import Span, only_communicating, split

COPY, NCCL, ATTENTION = "Memcpy PtoP (Device -> Device)", "ncclDevKernel_SendRecv", "flash_fwd"


def test_only_what_no_kernel_hides_is_exposed() -> None:
    assert only_communicating([Span(0, 10, COPY)]) == 10
    assert only_communicating([Span(0, 10, COPY), Span(2, 5, ATTENTION)]) == 7
    assert only_communicating([Span(0, 10, COPY), Span(2, 5, ATTENTION), Span(4, 12, ATTENTION)]) == 2
    assert only_communicating([Span(0, 10, COPY), Span(5, 12, NCCL), Span(11, 20, ATTENTION)]) == 11
    assert only_communicating([Span(0, 3, ATTENTION), Span(5, 9, ATTENTION)]) == 0, "what is idle is not exposed"
    assert only_communicating([]) == 0


def test_a_call_begins_behind_the_all_reduce_that_wakes_all_ranks() -> None:
    spans = [
        Span(0, 1, "before"),
        Span(1, 5, "spin_kernel"),
        Span(5, 6, "ncclDevKernel_AllReduce"),
        Span(6, 9, ATTENTION),
        Span(8, 9, COPY),
        Span(10, 15, "spin_kernel"),
        Span(15, 16, "ncclDevKernel_AllReduce"),
        Span(16, 19, COPY),
    ]
    assert list(split(reversed(spans))) == [spans[3:5], spans[7:]]
    assert list(split([])) == []
