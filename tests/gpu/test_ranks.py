"""Ranks as threads of one GPU: every kernel, both passes, within twice plain PyTorch's error.

The passes are called themselves: autograd would run the backward passes of all threads on the GPU's one thread, where
the first would wait for the others for ever.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ringattn_comms.backends.threads import ThreadSharedBuffers, run
from ringattn_comms.connect import connect
from ringattn_comms.one_sided import OneSided
from ringattn_core.errors import UnsupportedError
from ringattn_core.kernels.choose import choose
from ringattn_core.plan.layout import zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import route_named
from ringattn_core.run.execute import attend, attend_backward
from ringattn_core.run.kernel import Options
from ringattn_core.run.transport import KV

HEADS, KV_HEADS, DIM = 8, 2, 128
Found = tuple[Tensor, Tensor, Tensor, Tensor]


def dense(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, window: int, dtype: torch.dtype) -> Found:
    q, k, v = (x.to(dtype).requires_grad_() for x in (q, k, v))
    keys, values = (x.repeat_interleave(HEADS // KV_HEADS, dim=1).transpose(0, 1) for x in (k, v))
    scores = q.transpose(0, 1) @ keys.mT * DIM**-0.5
    token = torch.arange(len(q), device="cuda")
    apart = token[None] - token[:, None]
    dead = (apart > 0) | (apart < (-window if window >= 0 else -len(q)))
    out = (torch.softmax(scores.masked_fill(dead, -torch.inf), dim=-1) @ values).transpose(0, 1)
    dq, dk, dv = torch.autograd.grad((out * dout.to(dtype)).sum(), (q, k, v))
    return out.detach(), dq, dk, dv


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["torch_flash", "flash_attn_4", "cudnn"])
@pytest.mark.parametrize("route", ["ring", "waves(2)", "gather"])
@pytest.mark.parametrize(("size", "window", "one_sided"), [(2, -1, True), (4, 300, False), (3, -1, True)])
def test_both_passes(kernel: str, route: str, size: int, window: int, one_sided: bool) -> None:
    total = 1024 + 8 * size
    q, dout = (torch.randn(total, HEADS, DIM, device="cuda").bfloat16() for _ in range(2))
    k, v = (torch.randn(total, KV_HEADS, DIM, device="cuda").bfloat16() for _ in range(2))
    options = Options(DIM**-0.5)

    def main(comm):
        schedule = plan(zigzag, route_named(route), (0, total), (0, total), comm.rank, size, window=(window, 0))
        rows = torch.tensor(schedule.queries.positions(comm.rank), device="cuda")
        chosen, kv = choose(q[rows], k[rows], v[rows], schedule, options, kernel), KV(k[rows], v[rows])
        windows = ThreadSharedBuffers(comm, "cuda")

        def transport():
            return OneSided(schedule, kv, windows) if one_sided else connect(comm, schedule, kv)

        result = attend(transport(), chosen, q[rows], options)
        grads = attend_backward(transport(), chosen, dout[rows], q[rows], result, options)
        return rows, (result.out, *grads[:3])

    try:
        results = run(size, main, timeout=120)  # Kernels are compiled, for all ranks and by all workers at once.
    except UnsupportedError as error:
        pytest.skip(str(error))
    exact, rough = (dense(q, k, v, dout, window, dtype) for dtype in (torch.float64, torch.bfloat16))
    for rows, found in results:
        for name, got, want, other in zip(("out", "dq", "dk", "dv"), found, exact, rough, strict=True):
            error, allowed = (got - want[rows]).abs().max().item(), 2 * (other - want).abs().max().item()
            assert error <= allowed + 1e-4, f"{name}: {error} > {allowed}"
