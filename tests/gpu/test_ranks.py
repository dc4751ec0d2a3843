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
from ringattn_core.plan import masks
from ringattn_core.plan.layout import layout_named, zigzag
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_layout import layout_for
from ringattn_core.plan.mask_planner import plan_mask
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import route_named
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.execute import attend, attend_backward
from ringattn_core.run.kernel import Options
from ringattn_core.run.transport import KV

HEADS, KV_HEADS, DIM = 8, 2, 128
Found = tuple[Tensor, Tensor, Tensor, Tensor]


def dense(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, live: Tensor, dtype: torch.dtype) -> Found:
    q, k, v = (x.to(dtype).requires_grad_() for x in (q, k, v))
    keys, values = (x.repeat_interleave(HEADS // KV_HEADS, dim=1).transpose(0, 1) for x in (k, v))
    scores = q.transpose(0, 1) @ keys.mT * DIM**-0.5
    seeing = live.any(dim=-1, keepdim=True)  # A row that sees nothing gets 0; its softmax would be NaN.
    out = (torch.softmax(scores.masked_fill(~live & seeing, -torch.inf), dim=-1) @ values * seeing).transpose(0, 1)
    dq, dk, dv = torch.autograd.grad((out * dout.to(dtype)).sum(), (q, k, v))
    return out.detach(), dq, dk, dv


def compare(schedules: list[Schedule], live: Tensor, kernel: str, one_sided: bool) -> None:
    """Run both passes on all ranks; live: (tokens, tokens), the cells of the mask."""
    total = len(live)
    q, dout = (torch.randn(total, HEADS, DIM, device="cuda").bfloat16() for _ in range(2))
    k, v = (torch.randn(total, KV_HEADS, DIM, device="cuda").bfloat16() for _ in range(2))
    options = Options(DIM**-0.5)

    def main(comm):
        schedule = schedules[comm.rank]
        rows = torch.tensor(schedule.queries.positions(comm.rank), device="cuda")
        chosen, kv = choose(q[rows], k[rows], v[rows], schedule, options, kernel), KV(k[rows], v[rows])
        windows = ThreadSharedBuffers(comm, "cuda")

        def transport():
            return OneSided(schedule, kv, windows) if one_sided else connect(comm, schedule, kv)

        result = attend(transport(), chosen, q[rows], options)
        grads = attend_backward(transport(), chosen, dout[rows], q[rows], result, options)
        return rows, (result.out, *grads[:3])

    try:
        results = run(
            len(schedules), main, timeout=120
        )  # Kernels are compiled, for all ranks and by all workers at once.
    except UnsupportedError as error:
        pytest.skip(str(error))
    exact, rough = (dense(q, k, v, dout, live, dtype) for dtype in (torch.float64, torch.bfloat16))
    for rows, found in results:
        for name, got, want, other in zip(("out", "dq", "dk", "dv"), found, exact, rough, strict=True):
            error, allowed = (got - want[rows]).abs().max().item(), 2 * (other - want).abs().max().item()
            assert error <= allowed + 1e-4, f"{name}: {error} > {allowed}"


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["torch_flash", "flash_attn_4", "cudnn"])
@pytest.mark.parametrize("route", ["ring", "waves(2)", "gather"])
@pytest.mark.parametrize(("size", "window", "one_sided"), [(2, -1, True), (4, 300, False), (3, -1, True)])
def test_both_passes(kernel: str, route: str, size: int, window: int, one_sided: bool) -> None:
    total = 1024 + 8 * size
    borders = (0, total)
    schedules = [
        plan(zigzag, route_named(route), borders, borders, rank, size, window=(window, 0)) for rank in range(size)
    ]
    token = torch.arange(total, device="cuda")
    before = token[:, None] - token
    live = (before >= 0) & (before <= window) if window >= 0 else before >= 0
    compare(schedules, live, kernel, one_sided)


MASKS = {
    "images": masks.causal(1000) | masks.two_way([range(100, 300), range(450, 700)], 1000),
    "prefix": masks.prefix(1000, 300),
    "shared prefix": masks.shared_prefix(400, [200, 150, 250]),
    "tree": masks.tree([-1, 0, 0, 1, 1, 2], [200, 100, 150, 250, 120, 180]),
    "window and first": masks.window(1000, 99) | masks.first(1000, 16) & masks.causal(1000),
    "chunked": masks.chunked(1000, 256),
    "blocks": masks.blocks([[column <= row for column in range(8)] for row in range(8)], 125),
    "rows that see nothing": masks.causal(1000) - masks.slices([(300, 500)], [(0, 1000)], ["full"]),
}


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["torch_flash", "flash_attn_4"])
@pytest.mark.parametrize(("layout", "route"), [("balanced", "waves(2)"), ("zigzag", "gather"), ("striped", "ring")])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks(kernel: str, layout: str, route: str, mask: Mask) -> None:
    shared = layout_for(layout_named(layout), mask)
    schedules = [plan_mask(mask, shared, route_named(route), rank, 3) for rank in range(3)]
    compare(
        schedules,
        torch.tensor([list(row) for row in mask.dense()], device="cuda").bool(),
        kernel,
        one_sided=route != "ring",
    )
