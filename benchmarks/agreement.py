"""What it costs a host that the ranks of a group agree before each pass: microseconds of CPU for a call of `attention`.

    python benchmarks/agreement.py [--ranks 2 4] [--calls 400]

Ranks are threads of this process: a forward call without and with agreement, interleaved. Then they are processes that
send headers as hosts with GPUs do, without waiting: one turn by itself. Each figure is the median of the slowest rank,
in CPU time of the thread that calls, so the time for which it waits for others does not count.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from threading import local
from typing import Any

import torch
import torch.distributed as dist

from ringattn import ContextParallel, attention
from ringattn_comms.agreement import Agreement
from ringattn_comms.backends.host_channel import HostChannel
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator

_WARM_UP = 20


def on_threads(comm: Communicator, calls: int) -> list[float]:
    """A forward call without agreement, and with it."""
    cp = ContextParallel(comm, route="waves")
    q, k, v = torch.randn(3, 1, 16, 2, 8)
    times: list[list[float]] = [[], []]
    for call in range(2 * (calls + _WARM_UP)):
        _SWITCH.agrees = call % 2 == 1
        began = time.thread_time()
        attention(q, k, v, cp=cp, causal=True)
        times[call % 2].append(time.thread_time() - began)
    return [1e6 * median(each[_WARM_UP:]) for each in times]


def between_processes(rank: int, size: int, store: str, calls: int, results: Any) -> None:
    """One turn of the headers that hosts with GPUs send."""
    torch.set_num_threads(1)
    names = [f"rank {other}" for other in range(size)]
    agreement = Agreement(rank, HostChannel(dist.FileStore(store, size), rank, names, waits=False).say)
    times, x = [], torch.zeros(64)
    for _ in range(calls + _WARM_UP):
        began = time.thread_time()
        with agreement.turn("forward", b'{"layout": "zigzag"}', wait=False):
            pass
        times.append(time.thread_time() - began)
        until = time.monotonic() + 0.002
        while time.monotonic() < until:  # The host is busy with a pass meanwhile.
            x.add_(1.0)
    results.put(1e6 * median(times[_WARM_UP:]))


_SWITCH = local()
_CALL = sys.modules["ringattn.call"]
_TURN = _CALL.turn  # type: ignore[attr-defined]


def _turn(*args: Any) -> Any:
    return _TURN(*args) if _SWITCH.agrees else nullcontext(0)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    options.add_argument("--calls", type=int, default=400)
    given = options.parse_args()
    torch.set_num_threads(1)
    vars(_CALL)["turn"] = _turn
    print("| ranks | call without agreement, us | with | difference | a turn beside a GPU, us |")
    print("|---|---|---|---|---|")
    for size in given.ranks:
        without, agreed = map(max, zip(*run(size, lambda comm: on_threads(comm, given.calls)), strict=True))
        print(
            f"| {size} | {without:.0f} | {agreed:.0f} | {agreed - without:.0f} | {processes(size, given.calls):.0f} |"
        )


def processes(size: int, calls: int) -> float:
    """The slowest rank's time for a turn."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        ranks = [
            context.Process(target=between_processes, args=(rank, size, store, calls, results)) for rank in range(size)
        ]
        for each in ranks:
            each.start()
        found = [results.get(timeout=120) for _ in ranks]
        for each in ranks:
            each.join()
    return max(found)


if __name__ == "__main__":
    main()
