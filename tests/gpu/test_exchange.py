"""The kernel that exchanges small messages, between two streams of one GPU that play two ranks."""

from __future__ import annotations

import pytest
import torch

SIZE = 2


def ranks(exchange, moves) -> None:
    """All ranks' exchanges at once: `moves` says for each rank what it does before and after."""
    streams = [torch.cuda.Stream() for _ in range(SIZE)]
    for rank, stream in enumerate(streams):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            exchange(*moves[rank], rank)
    for stream in streams:
        torch.cuda.current_stream().wait_stream(stream)


@pytest.mark.gpu
@pytest.mark.timeout(60)
@pytest.mark.parametrize("tokens", [1, 77, 512, 3000])
def test_everyone_reads_what_everyone_wrote(tokens: int) -> None:
    """Over and over in the same places: what is read is this turn's, never the last one's."""
    from ringattn_comms.backends.exchange import exchange

    windows = [torch.zeros(2, tokens, 2, 96, device="cuda", dtype=torch.bfloat16) for _ in range(SIZE)]
    bells = tuple(torch.zeros(SIZE, device="cuda", dtype=torch.int64) for _ in range(SIZE))
    rung = lambda first, then, rank: exchange(first, then, bells, rank)  # noqa: E731
    for _ in range(20):
        own = torch.randn(SIZE, 2, tokens, 2, 96, device="cuda").bfloat16()
        found = torch.full_like(own, torch.nan)
        first = [[(windows[rank][part], own[rank, part]) for part in range(2)] for rank in range(SIZE)]
        then = [[(found[rank, part], windows[1 - rank][part]) for part in range(2)] for rank in range(SIZE)]
        ranks(rung, list(zip(first, then, strict=True)))
        assert torch.equal(found[0], own[1]) and torch.equal(found[1], own[0])
        ranks(rung, [([], [])] * SIZE)  # all have read


@pytest.mark.gpu
@pytest.mark.timeout(60)
def test_many_moves_and_scattered_ones() -> None:
    """More moves than a kernel takes, and tensors with gaps, are made as well, and none too early."""
    from ringattn_comms.backends.exchange import exchange

    bells = tuple(torch.zeros(SIZE, device="cuda", dtype=torch.int64) for _ in range(SIZE))
    windows = torch.zeros(SIZE, 30, 64, 2, 16, device="cuda", dtype=torch.bfloat16)
    own = torch.randn(SIZE, 30, 64, 4, 16, device="cuda").bfloat16()[..., ::2, :]
    found = torch.full_like(windows, torch.nan)
    first = [[(windows[rank, part], own[rank, part]) for part in range(30)] for rank in range(SIZE)]
    then = [[(found[rank, part], windows[1 - rank, part]) for part in range(30)] for rank in range(SIZE)]
    ranks(lambda before, after, rank: exchange(before, after, bells, rank), list(zip(first, then, strict=True)))
    assert torch.equal(found[0], own[1]) and torch.equal(found[1], own[0])


@pytest.mark.gpu
@pytest.mark.timeout(60)
def test_replayed() -> None:
    """A captured exchange counts its turns in memory, so that every replay waits for its own."""
    from ringattn_comms.backends.exchange import exchange

    bells = tuple(torch.zeros(SIZE, device="cuda", dtype=torch.int64) for _ in range(SIZE))
    windows, found = (torch.zeros(SIZE, 256, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    own = torch.randn(SIZE, 256, 128, device="cuda").bfloat16()
    moves = [([(windows[rank], own[rank])], [(found[rank], windows[1 - rank])]) for rank in range(SIZE)]
    rung = lambda first, then, rank: exchange(first, then, bells, rank)  # noqa: E731
    ranks(rung, moves)
    ranks(rung, [([], [])] * SIZE)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ranks(rung, moves)
        ranks(rung, [([], [])] * SIZE)
    for _ in range(5):
        own.copy_(torch.randn(own.shape, device="cuda"))
        found.fill_(torch.nan)
        graph.replay()
        assert torch.equal(found[0], own[1]) and torch.equal(found[1], own[0])
