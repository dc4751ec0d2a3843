"""One GPU plays every rank of a group in turn: the launches, the sums, and copies of the bytes that would travel.

    python benchmarks/play_ranks.py --size 8 --local 8192 32768 --routes ring "waves(2)" "waves(3)"

What a rank fetches is copied from another buffer of the same GPU on a second stream, and so is what it sends home.
Prints for each route one GPU's time for the whole sequence, divided by the size, as a share of the slowest rank's time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from timing import interleaved
from torch import Tensor

from ringattn_core.execute import attend, attend_backward
from ringattn_core.kernel import Options
from ringattn_core.kernels.choose import choose
from ringattn_core.layout import layout_named
from ringattn_core.planner import plan
from ringattn_core.route import route_named
from ringattn_core.schedule import Piece, Schedule, Step
from ringattn_core.totals import add_slots
from ringattn_core.transport import KV

HEADS, KV_HEADS, DIM = 32, 8, 128


class Played:
    """A transport that copies within one GPU: what is fetched, what is sent home, and what would arrive from others."""

    def __init__(self, shards: KV, arrived: KV) -> None:
        self.shards, self.arrived = shards, arrived
        self.side = torch.cuda.Stream()

    def stream(self, schedule: Schedule, kv: KV) -> Iterator[tuple[Step, KV]]:
        self.rank, self.size = schedule.cp_rank, schedule.cp_size
        fetched = self._fetch(schedule, schedule.steps[0], kv)
        for index, step in enumerate(schedule.steps):
            current = fetched
            if index + 1 < len(schedule.steps):
                fetched = self._fetch(schedule, schedule.steps[index + 1], kv)
            buffer, ready = current
            torch.cuda.current_stream().wait_event(ready)
            yield step, buffer

    def _fetch(self, schedule: Schedule, step: Step, kv: KV) -> tuple[KV, torch.cuda.Event]:
        if step.sources == (self.rank,):
            return kv, torch.cuda.current_stream().record_event()
        buffer = KV(*(x.new_empty((schedule.buffer_length(step), *x.shape[1:])) for x in kv))
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            for piece in step.pieces:
                columns = slice(piece.columns.start, piece.columns.stop)
                for place, shard in zip(buffer, self.shards, strict=True):
                    place[columns].copy_(shard[piece.rows.start : piece.rows.stop])
            return buffer, self.side.record_event()

    def give(self, step: Step, grads: KV) -> None:
        if step.sources == (self.rank,):
            self.own = grads
            return
        if self.rank in step.sources:
            own = [piece for piece in step.pieces if piece.source == self.rank]
            self.own = KV(*(_taken(grad, own, slots) for grad, slots in zip(grads, self.arrived, strict=True)))
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            for piece in (piece for piece in step.pieces if piece.source != self.rank):
                for slot, grad in zip(self.arrived, grads, strict=True):
                    slot[0, : len(piece.rows)].copy_(grad[piece.columns.start : piece.columns.stop])
        for grad in grads:
            grad.record_stream(self.side)

    def collect(self) -> KV:
        torch.cuda.current_stream().wait_stream(self.side)
        lots = tuple((slot, range(self.arrived.k.shape[1])) for slot in range(len(self.arrived.k)))
        return KV(*(add_slots(own, slots, lots) for own, slots in zip(self.own, self.arrived, strict=True)))


def _taken(grad: Tensor, pieces: list[Piece], slots: Tensor) -> Tensor:
    """What lies in a step's buffer for this rank's own keys."""
    own = torch.zeros_like(slots[0])
    for piece in pieces:
        own[piece.rows.start : piece.rows.stop] = grad[piece.columns.start : piece.columns.stop]
    return own


def passes(schedule: Schedule, kernel: str | None, tokens: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """A forward pass, and a forward with its backward pass, of one rank."""
    q, dout = (torch.randn(tokens, HEADS, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    k, v, other_k, other_v = (torch.randn(tokens, KV_HEADS, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    slots = max(1, schedule.cp_size - 1)
    arrived = KV(*(torch.zeros(slots, tokens, KV_HEADS, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2)))
    options, kv, transport = Options(DIM**-0.5), KV(k, v), Played(KV(other_k, other_v), arrived)
    chosen = choose(q, k, v, schedule, options, kernel)

    def forward() -> object:
        return attend(schedule, transport, chosen, q, kv, options)

    def both() -> object:
        result = attend(schedule, transport, chosen, q, kv, options)
        return attend_backward(schedule, transport, chosen, dout, q, kv, result, options)

    return forward, both


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
    cases = dict(zip(("one fwd", "one both"), passes(whole, arguments.kernel, local * size), strict=True))
    for route in arguments.routes:
        for rank in range(size):
            layout = layout_named(arguments.layout)
            schedule = plan(layout, route_named(route), borders, borders, rank, size, window=window)
            cases[f"{route} {rank} fwd"], cases[f"{route} {rank} both"] = passes(schedule, arguments.kernel, local)
    times = interleaved(cases, repeats)
    one = f"{times['one fwd']:.2f} / {times['one both']:.2f} ms"
    print(f"\n{local} tokens on each of {size} ranks, packing {packing}, window {window}; one GPU: {one}")
    for route in arguments.routes:
        for kind in ("fwd", "both"):
            ranks = [times["one " + kind] / size / times[f"{route} {rank} {kind}"] * 100 for rank in range(size)]
            print(f"{route:10} {kind:5} {min(ranks):5.1f} %   by rank: {' '.join(f'{x:.1f}' for x in ranks)}")


if __name__ == "__main__":
    main()
