"""One-sided transport on one GPU, ranks as threads: the copies, streams and fused sums of a real group."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ringattn_comms.backends.threads import ThreadSharedBuffers, run
from ringattn_comms.one_sided import OneSided
from ringattn_core.kernels.reference import Reference
from ringattn_core.kernels.torch_flash_cuda import TorchFlashCuda
from ringattn_core.plan.layout import zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import gather, ring, waves
from ringattn_core.run.execute import attend, attend_backward
from ringattn_core.run.head_groups import attend_backward_in_groups, attend_in_groups
from ringattn_core.run.kernel import Options
from ringattn_core.run.transport import KV, LocalTransport


@pytest.mark.gpu
@pytest.mark.parametrize("route", [ring, waves(2), gather], ids=["ring", "waves", "gather"])
@pytest.mark.parametrize(
    "borders", [(0, 2048), (0, 100, 101, 1500, 2049), tuple(range(0, 2100, 50))], ids=["one", "packed", "many"]
)
def test_pull_on_one_gpu(route, borders: tuple[int, ...]) -> None:
    size, heads, kv_heads, dim = 4, 8, 2, 64
    total, kernel = borders[-1], TorchFlashCuda()
    q, dout = (torch.randn(total, heads, dim, device="cuda").bfloat16() for _ in range(2))
    k, v = (torch.randn(total, kv_heads, dim, device="cuda").bfloat16() for _ in range(2))
    options = Options(dim**-0.5)

    def main(comm):
        schedule = plan(zigzag, route, borders, borders, comm.rank, size, window=(-1, 0))
        rows = torch.tensor(schedule.queries.positions(comm.rank), device="cuda")
        windows, kv = ThreadSharedBuffers(comm, "cuda"), KV(k[rows], v[rows])
        for _ in range(3):  # the window is used again and again
            link = partial(OneSided, schedule, shared_buffers=windows)
            result = attend_in_groups(2, link, kernel, q[rows], kv, options)
            grads = attend_backward_in_groups(2, link, kernel, dout[rows], q[rows], kv, result, options)
        torch.cuda.synchronize()
        return rows, result.out, grads

    whole = plan(zigzag, ring, borders, borders, 0, 1, window=(-1, 0))
    order = torch.tensor(whole.queries.positions(0), device="cuda")
    wide = KV(k[order].double(), v[order].double())
    want = attend(LocalTransport(whole, wide), Reference(), q[order].double(), options)
    want_grads = attend_backward(
        LocalTransport(whole, wide), Reference(), dout[order].double(), q[order].double(), want, options
    )
    place = torch.empty_like(order)
    place[order] = torch.arange(total, device="cuda")
    for rows, out, grads in run(size, main):
        at = place[rows]
        for got, exact in (
            (out, want.out),
            (grads.dq, want_grads.dq),
            (grads.dk, want_grads.dk),
            (grads.dv, want_grads.dv),
        ):
            error = (got.double() - exact[at]).abs().max() / exact.abs().max()
            assert error < 0.02, error
