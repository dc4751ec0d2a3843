"""Ranks that fall out of step with a GPU each: hosts do not wait for each other, and every rank is told anyway."""

from __future__ import annotations

import os
import re
import time

import pytest
import torch
import torch.distributed as dist

import processes
from ringattn import ContextParallel, attention
from ringattn_comms.backends.symmetric import SymmetricSharedBuffers
from ringattn_comms.backends.torch_dist import TorchDist

needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason=f"{torch.cuda.device_count()} of 2 GPUs are here")


def fault(kind: str, odd: bool) -> None:
    cp = ContextParallel(route="waves", kernel="torch_flash")
    x = [torch.randn(1, 1024, heads, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for heads in (4, 2, 2)]
    for causal in (True, False):  # Both are known to all ranks, but where the fault is to ask for something new.
        attention(*x, cp=cp, causal=causal).sum().backward()
    torch.cuda.synchronize()
    if kind == "known":
        attention(*x, cp=cp, causal=odd)
    elif kind == "new":
        attention(*x, cp=cp, causal=True, window_size=(100, 0) if odd else (-1, 0))
    elif kind == "skipped backward":
        out = attention(*x, cp=cp, causal=True)
        if not odd:
            out.sum().backward()
    elif kind == "refused":
        attention(*x, cp=cp, causal=True, dropout_p=2.0 if odd else 0.0)
    # A program that looks at a result waits for its GPU; and then there are more layers.
    torch.cuda.synchronize()
    for _ in range(3):
        attention(*x, cp=cp, causal=True)


def told(kind: str, one_sided: bool) -> tuple[str, float]:
    """What this rank is told, and after how many seconds."""
    with pytest.MonkeyPatch.context() as patch:
        if not one_sided:
            patch.setattr(TorchDist, "shared_buffers", lambda self, device: None)
        began = time.monotonic()
        try:
            fault(kind, dist.get_rank() == 1)
        except (RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {error}", time.monotonic() - began
    return "nothing", 0.0


EXPECTED = {
    "known": (r"mask is \(-1, -1\) on rank 0 and \(-1, 0\) on rank 1",) * 2,
    "new": (r"mask is \(-1, 0\) on rank 0 and \(100, 0\) on rank 1",) * 2,
    "skipped backward": (r"rank 0 begins .*backward of \d+, and rank 1 .*forward",) * 2,
    "refused": ("rank 1 refused its input: ValueError: dropout_p must be", "dropout_p must be"),
}


@pytest.mark.gpu
@needs_two
@pytest.mark.parametrize("kind", EXPECTED)
def test_ranks_over_nccl_are_told(kind: str) -> None:
    found = processes.run(2, told, kind, False, timeout=60, backend="nccl", ending=[0, 1])
    for (message, seconds), pattern in zip(found, EXPECTED[kind], strict=True):
        print(f"{kind}: after {seconds:.1f} s: {message}")
        assert re.search(pattern, message), message


@pytest.mark.gpu
@needs_two
@pytest.mark.parametrize("kind", ["known", "refused"])
def test_ranks_with_windows_are_told(kind: str) -> None:
    """A rank whose kernel waits for another's signals is released by signals of its host."""
    found = processes.run(2, told, kind, True, timeout=60, backend="nccl", ending=[0, 1])
    for (message, seconds), pattern in zip(found, EXPECTED[kind], strict=True):
        print(f"{kind}: after {seconds:.1f} s: {message}")
        assert re.search(pattern, message), message


def left_alone() -> float:
    """The second rank ends, and the first one's kernels wait for its signals: the seconds until they were released.

    Both are on one GPU.
    """
    os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    device = torch.device("cuda", 0)
    buffers = SymmetricSharedBuffers(None, device)
    buffer = buffers.at_least(1 << 20)
    to, source = torch.zeros(2, 1000, device=device)
    for _ in range(2):
        buffer.exchange([(to, source)], [], small=True)
        buffer.barrier()
    torch.cuda.synchronize()
    dist.barrier()
    if dist.get_rank() == 1:
        return 0.0
    for small in (True, False, True, False):
        buffer.exchange([(to, source)], [(to, source)], small=small)
    done = torch.cuda.Event()
    done.record()
    time.sleep(1.0)
    assert not done.query(), "the other rank takes no part"
    began = time.monotonic()
    buffers.release()
    done.synchronize()
    with pytest.raises(RuntimeError, match=r"out of step.*cannot be used again"):
        buffers.at_least(1)
    return time.monotonic() - began


@pytest.mark.gpu
def test_a_rank_that_waits_for_signals_is_released() -> None:
    alone, _ = processes.run(2, left_alone, timeout=90)
    assert 0 < alone < 5
