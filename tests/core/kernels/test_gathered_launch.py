"""A launch as FlashAttention-2 takes it: where it divides keys, what is not finite stays visible in lse too."""

from __future__ import annotations

import pytest
import torch

from ringattn_core.kernels import gathered_launch as module
from ringattn_core.kernels.gathered_launch import gathered_launch
from ringattn_core.plan.layout import contiguous
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import ring
from ringattn_core.run.device_plan import DevicePlan


@pytest.mark.parametrize("borders", [(0, 8), (0, 3, 8)])
def test_rows_without_finite_scores_have_no_finite_lse_where_keys_were_divided(monkeypatch, borders) -> None:
    (launch,) = plan(contiguous, ring, borders, borders, 0, 1).steps[0].launches
    part = gathered_launch(DevicePlan(torch.device("cpu")), launch)
    out, lse = torch.ones(8, 2, 4), torch.zeros(2, 8)
    out[5, 1], out[6, 0, 0] = torch.nan, torch.nan  # row 5 has no finite score; a value that row 6 sees is NaN
    out, lse = (out, lse) if part.lengths else (out[None], lse[None])
    assert part.block(out, lse).lse.isfinite().all(), "on a CPU nothing divides keys"
    monkeypatch.setattr(module, "_few_rows", lambda out: True)
    wrong = part.block(out, lse).lse.isnan()
    assert wrong[1, 5] and wrong.sum() == 1
