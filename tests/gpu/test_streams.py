"""A layer's path asks the GPU nothing: no synchronisation forward or backward, and it can be captured in a graph."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import ringattn


@pytest.fixture
def no_sync() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def tensors(tokens: int) -> list[torch.Tensor]:
    return [
        torch.randn(1, tokens, heads, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (8, 2, 2)
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["torch_flash", "flash_attn_4", "cudnn"])
def test_no_sync(no_sync: None, kernel: str) -> None:
    cp, parts = ringattn.ContextParallel(_alone(), kernel=kernel, cu_seqlens=[0, 256, 512]), tensors(512)
    try:
        ringattn.attention(*parts, cp=cp, causal=True).sum().backward()
    except ringattn.UnsupportedError as error:
        pytest.skip(str(error))
    torch.cuda.set_sync_debug_mode("error")
    ringattn.attention(*parts, cp=cp, causal=True).sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("cu_seqlens", [None, [0, 100, 300, 512]], ids=["one", "packed"])
@pytest.mark.parametrize("kernel", ["torch_flash", "flash_attn_4"])
def test_cuda_graph(kernel: str, cu_seqlens: list[int] | None) -> None:
    """It is replayed long after what it was captured with has left all caches."""
    cp, parts = ringattn.ContextParallel(_alone(), kernel=kernel, cu_seqlens=cu_seqlens), tensors(512)

    def both() -> list[torch.Tensor]:
        out = ringattn.attention(*parts, cp=cp, causal=True)
        return [out, *torch.autograd.grad(out.float().square().sum(), parts)]

    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            both()
        torch.cuda.current_stream().wait_stream(side)
    except ringattn.UnsupportedError as error:
        pytest.skip(str(error))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    with torch.no_grad():
        for x in parts:
            x.copy_(torch.randn_like(x))
        for border in range(1, 301):
            ringattn.attention(*parts, cp=cp.with_cu_seqlens([0, border, 512]), causal=True)
        junk = [torch.full((512,), 7, dtype=torch.int32, device="cuda") for _ in range(1000)]
    graph.replay()
    assert all(x.eq(7).all() for x in junk)
    for got, want in zip(captured, both(), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def _alone():
    from ringattn_comms.communicator import SingleRank

    return SingleRank()
