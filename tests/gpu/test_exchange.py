"""The kernel that exchanges small messages, between two processes with a GPU each.

Not between two streams of one GPU: the first would spin until the second rings, whose code may have to be loaded first,
for which CUDA waits until the GPU has nothing to do.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import processes
from gpu.test_processes import missing, needs_two
from ringattn_comms.backends.symmetric import SymmetricSharedBuffers
from ringattn_comms.shared_buffer import Move, Region, SharedBuffer


class Bench:
    """A rank's end of a window, with tensors of one shape in it; what each rank puts there is known to both."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.rank, region = dist.get_rank(), Region()
        self.device = torch.device("cuda", self.rank)
        self.window: SharedBuffer = SymmetricSharedBuffers(None, self.device).at_least(1 << 23)
        self.places = [region.place(shape, torch.bfloat16) for _ in range(count)]
        self.found = torch.empty((count, *shape), dtype=torch.bfloat16, device=self.device)

    def drawn(self, turn: int, rank: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(2 * turn + rank)
        return torch.randn(self.found.shape, generator=generator, device=self.device).bfloat16()

    def exchange(self, own: Tensor) -> None:
        """own into this rank's memory, the other's out of its own into `found`, and both have read."""
        first: list[Move] = [(place.on(self.window, self.rank), x) for place, x in zip(self.places, own, strict=True)]
        then = [(x, place.on(self.window, 1 - self.rank)) for place, x in zip(self.places, self.found, strict=True)]
        self.window.exchange(first, then, small=True)
        self.window.exchange([], [], small=True)


def over_and_over() -> None:
    """In the same places: what is read is this turn's, never the last one's."""
    for tokens in (1, 77, 512, 3000):
        bench = Bench(2, (tokens, 2, 96))
        for turn in range(20):
            bench.found.fill_(torch.nan)
            bench.exchange(bench.drawn(turn, bench.rank))
            assert torch.equal(bench.found, bench.drawn(turn, 1 - bench.rank)), f"{tokens} tokens, turn {turn}"


def many_and_scattered() -> None:
    """More moves than a kernel takes, and tensors with gaps, are made as well, and none too early."""
    bench = Bench(30, (64, 2, 16))
    for turn in range(5):
        bench.found.fill_(torch.nan)
        wide = bench.drawn(turn, bench.rank).repeat_interleave(2, dim=2)
        bench.exchange(wide[:, :, ::2])
        assert torch.equal(bench.found, bench.drawn(turn, 1 - bench.rank))


def replayed() -> None:
    """A captured exchange counts its turns in memory, so that every replay waits for its own."""
    bench = Bench(2, (256, 2, 64))
    own = bench.drawn(0, bench.rank)
    bench.exchange(own)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        bench.exchange(own)
    for turn in range(1, 6):
        own.copy_(bench.drawn(turn, bench.rank))
        bench.found.fill_(torch.nan)
        graph.replay()
        assert torch.equal(bench.found, bench.drawn(turn, 1 - bench.rank))


@pytest.mark.gpu
@needs_two
@pytest.mark.parametrize("check", [over_and_over, many_and_scattered, replayed])
def test_exchange(check) -> None:
    if reason := missing("symmetric"):
        pytest.skip(reason)
    processes.run(2, check, timeout=100, backend="nccl")
