"""One GPU plays every rank of a group in turn: the launches, the sums, and copies of the bytes that would travel.

    python benchmarks/play_ranks.py --size 8 --local 8192 32768 --routes ring "waves(2)" "waves(3)"

The transport is the one-sided one: what a rank fetches it copies from another buffer of the same GPU on a second
stream, and there it copies what it sends home. Prints for each route one GPU's time for the whole sequence, divided by
the size, as a share of the slowest rank's time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from timing import interleaved
from torch import Tensor

from ringattn_comms.one_sided import OneSided
from ringattn_comms.shared_buffer import SharedBuffer, SharedBuffers
from ringattn_core.kernels.choose import choose
from ringattn_core.plan.layout import layout_named
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import route_named
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.execute import Gradients, Result, attend, attend_backward
from ringattn_core.run.kernel import Options
from ringattn_core.run.transport import KV, LocalTransport, Transport

HEADS, KV_HEADS, DIM = 32, 8, 128
Backward = Callable[[Result], Gradients]


class Played(SharedBuffers):
    """Shared buffers of a rank whose peers are one other buffer of the same device, and are never waited for."""

    def __init__(self, rank: int, device: str = "cuda") -> None:
        super().__init__()
        self.rank, self.device = rank, device

    def allocate(self, size: int) -> SharedBuffer:
        return _PlayedBuffer(self.rank, size, self.device)


class _PlayedBuffer(SharedBuffer):
    def __init__(self, rank: int, size: int, device: str) -> None:
        super().__init__()
        self.rank = rank
        self.own, self.others = _memories(size, device)

    def memory(self, rank: int) -> Tensor:
        return self.own if rank == self.rank else self.others

    def barrier(self) -> None:
        """The others are there."""


@cache
def _memories(size: int, device: str) -> tuple[Tensor, Tensor]:
    """The same for every case, because one case runs at a time."""
    own, others = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return own, others


def passes(schedule: Schedule, kernel: str | None, tensors: Sequence[Tensor]) -> tuple[Callable[[], Result], Backward]:
    """The forward and the backward pass of one rank; tensors: its q, k, v and dout, each (tokens, heads, head_dim)."""
    q, k, v, dout = tensors
    options, kv, shared_buffers = Options(q.shape[-1] ** -0.5), KV(k, v), Played(schedule.cp_rank)
    chosen = choose(q, k, v, schedule, options, kernel)

    def transport() -> Transport:
        return OneSided(schedule, kv, shared_buffers) if schedule.cp_size > 1 else LocalTransport(schedule, kv)

    def forward() -> Result:
        return attend(transport(), chosen, q, options)

    def backward(result: Result) -> Gradients:
        return attend_backward(transport(), chosen, dout, q, result, options)

    return forward, backward


def drawn(tokens: int) -> list[Tensor]:
    """q, k, v and dout of a rank."""
    heads = HEADS, KV_HEADS, KV_HEADS, HEADS
    return [torch.randn(tokens, count, DIM, device="cuda", dtype=torch.bfloat16) for count in heads]


def fwd_and_both(schedule: Schedule, kernel: str | None, tokens: int) -> Iterator[Callable[[], object]]:
    """A forward pass, and a forward with its backward pass, of one rank."""
    forward, backward = passes(schedule, kernel, drawn(tokens))
    yield forward
    yield lambda: backward(forward())


PACKINGS = {
    "one": (0, 8192),
    "packed": (0, 256, 7648, 8192),
    "halves": (0, 4096, 8192),
    "mixed": (0, 3104, 6304, 7904, 8064, 8192),
}
"""Borders of packed sequences in 8,192ths of a rank's tokens: the four of ring-flash-attention's varlen benchmark."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8, help="ranks of the group")
    parser.add_argument("--local", type=int, nargs="+", default=[8192], help="tokens on each rank")
    parser.add_argument("--routes", nargs="+", default=["ring", "waves(2)", "waves(3)"])
    parser.add_argument("--layout", default="zigzag")
    parser.add_argument("--kernel", default=None)
    parser.add_argument("--packing", choices=PACKINGS, nargs="+", default=["one"])
    parser.add_argument("--window", type=int, default=-1, help="keys before a query that it sees; -1 is all")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    for local in arguments.local:
        for packing in arguments.packing:
            play(arguments, local, packing)


def play(arguments: argparse.Namespace, local: int, packing: str) -> None:
    size = arguments.size
    borders = tuple(border * local * size // 8192 for border in PACKINGS[packing])
    window = (arguments.window, 0)
    whole = plan(layout_named("contiguous"), route_named("ring"), borders, borders, 0, 1, window=window)
    repeats = max(3, arguments.repeats * 8192 // local)
    cases = dict(zip(("one fwd", "one both"), fwd_and_both(whole, arguments.kernel, local * size), strict=True))
    for route in arguments.routes:
        for rank in range(size):
            layout = layout_named(arguments.layout)
            schedule = plan(layout, route_named(route), borders, borders, rank, size, window=window)
            calls = fwd_and_both(schedule, arguments.kernel, local)
            cases.update(zip((f"{route} {rank} fwd", f"{route} {rank} both"), calls, strict=True))
    times = interleaved(cases, repeats)
    one = f"{times['one fwd'].gpu:.2f} / {times['one both'].gpu:.2f} ms"
    print(f"\n{local} tokens on each of {size} ranks, packing {packing}, window {window}; one GPU: {one}")
    for route in arguments.routes:
        for kind in ("fwd", "both"):
            whole, ranks = times[f"one {kind}"].gpu, [times[f"{route} {rank} {kind}"].gpu for rank in range(size)]
            shares = [whole / size / own * 100 for own in ranks]
            print(f"{route:10} {kind:5} {min(shares):5.1f} %   by rank: {' '.join(f'{x:.1f}' for x in shares)}")


if __name__ == "__main__":
    main()
