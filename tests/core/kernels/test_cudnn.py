"""The wrapper of cuDNN's attention over stand-ins for PyTorch's operators, on CPUs: what it says to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from launches import solve
from ringattn_core.kernels.cudnn import CuDnn
from ringattn_core.kernels.limits import Limits
from ringattn_core.plan.layout import Layout, contiguous, zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import Route, gather, ring
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import Tile
from ringattn_core.run.kernel import Options
from ringattn_core.run.transport import KV

SCALE = 0.3


def weights(q: Tensor, k: Tensor, causal: bool, lse: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of (batch, heads, tokens, dim), with a mask that is aligned to the top left: weights and lse."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ k.mT * SCALE
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True) if lse is None else lse
    return torch.exp(scores - lse), lse


@pytest.fixture(autouse=True)
def operators(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: None, lse: bool, *given: Any, scale: float) -> tuple[Any, ...]:
        dropout_p, causal, debug = given
        assert bias is None and lse and not debug and (dropout_p, scale) == (0.0, SCALE)
        found, lse_ = weights(q, k, causal)
        return found @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1), lse_, None, None

    def backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *given: Any, scale: float):
        *_, most_q, most_k, dropout_p, causal = given
        assert (most_q, most_k, dropout_p, scale) == (q.shape[2], k.shape[2], 0.0, SCALE) and lse.is_contiguous()
        p, _ = weights(q, k, causal, lse)
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        ds = p * (dout @ v.mT - (dout * out).sum(-1, keepdim=True)) * scale
        dk, dv = ((x.mT @ y).unflatten(1, (-1, group)).sum(2) for x, y in ((ds, q), (p, dout)))
        return ds @ k, dk, dv

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", forward)
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention_backward", backward)


def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices and dtypes do not matter here."""
    monkeypatch.setattr(Limits, "why_unsupported", lambda *_: None)


@pytest.mark.parametrize(("layout", "route"), [(zigzag, ring), (contiguous, ring), (contiguous, gather)], ids=str)
@pytest.mark.parametrize("borders", [(0, 32), (0, 32, 64, 96)])
def test_launches_that_it_supports(
    layout: Layout, route: Route, borders: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several sequences of one length, which are a batch, and of one."""
    anywhere(monkeypatch)
    like, taken = torch.empty(1, 4, 8), []
    for rank in range(2):
        schedule = plan(layout, route, borders, borders, rank, 2, window=(-1, 0))
        for step in schedule.steps:
            for launch in step.launches:
                if CuDnn().supports(launch, like, KV(like, like), Options(SCALE)) is None:
                    solve(CuDnn(), launch, schedule.query_length, schedule.buffer_length(step), Options(SCALE))
                    taken.append(len(launch.tiles))
    assert max(taken) == len(borders) - 1


@pytest.mark.parametrize(
    ("tiles", "words"),
    [
        ([Tile(range(4), range(8), high=4)], "aligned to the top left"),
        ([Tile(range(4), range(4), low=-1, high=0)], "aligned to the top left"),
        ([Tile(range(4), range(4)), Tile(range(4, 6), range(4, 6))], "tiles of one shape"),
        ([Tile(range(4), range(4)), Tile(range(5, 9), range(4, 8))], "without gaps"),
        ([Tile(range(4), range(4), high=0)], None),
        ([Tile(range(4), range(4)), Tile(range(4, 8), range(4, 8))], None),
    ],
)
def test_launches_that_it_refuses(tiles: list[Tile], words: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    anywhere(monkeypatch)
    like = torch.empty(8, 2, 8)
    why = CuDnn().supports(Launch(tuple(tiles)), like, KV(like, like), Options(SCALE))
    assert why is None if words is None else words in (why or "")
