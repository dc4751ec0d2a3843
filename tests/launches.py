"""Launches of every kind that the planner emits."""

from __future__ import annotations

import random
from typing import Any

import torch

from gpu.plain import plain
from ringattn_core.plan.layout import contiguous, striped, zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import gather, ring, waves
from ringattn_core.plan.schedule import Launch
from ringattn_core.run.kernel import NO_OUT_GRADS, Kernel, Options, Queries
from ringattn_core.run.transport import KV

WINDOWS = [(-1, -1), (-1, 0), (300, 0), (0, 0), (100, 50), (200, -1)]


def launches(count: int, seed: int) -> list[tuple[Launch, int, int]]:
    """Launches of random schedules, with the lengths of their query and key buffers."""
    rng, found = random.Random(seed), dict[Any, Any]()
    while len(found) < count:
        lengths = [rng.choice([rng.randint(1, 40), rng.randint(100, 1500)]) for _ in range(rng.choice([1, 1, 2, 5]))]
        borders = tuple(sum(lengths[:i]) for i in range(len(lengths) + 1))
        size = rng.randint(1, 5)
        schedule = plan(
            rng.choice([contiguous, zigzag, striped]),
            rng.choice([ring, waves(2), gather]),
            borders,
            borders,
            rng.randrange(size),
            size,
            window=rng.choice(WINDOWS),
            per_sequence=rng.random() < 0.5,
        )
        for step in schedule.steps:
            for launch in step.launches:
                dense = launch.dense_rows, launch.dense_columns
                kind = (launch.window if max(launch.window) < 1 else min(launch.window), len(launch.tiles) > 1, dense)
                found.setdefault(
                    (kind, rng.randrange(3)), (launch, schedule.query_length, schedule.buffer_length(step))
                )
    return list(found.values())[:count]


def solve(kernel: Kernel, launch: Launch, tokens_q: int, tokens_k: int, options: Options) -> None:
    """Forward and backward of one launch, and every row and column of a tile against float64."""
    torch.manual_seed(0)
    shapes = (tokens_q, 4, 8), (tokens_k, 2, 8), (tokens_k, 2, 8), (tokens_q, 4, 8)
    q, k, v, dout = (torch.randn(shape) for shape in shapes)
    exact = plain(launch, *(x.double() for x in (q, k, v, dout)), options.softmax_scale, options.softcap)
    block, rng_state = kernel.forward(q, KV(k, v), launch, options)
    assert rng_state is None
    queries = Queries(q, exact[0].float(), dout, exact[1].float(), None)
    grads = kernel.backward(queries, KV(k, v), launch, options, rng_state, NO_OUT_GRADS)
    rows = torch.cat([torch.arange(tile.q.start, tile.q.stop) for tile in launch.tiles])
    columns = torch.cat([torch.arange(tile.k.start, tile.k.stop) for tile in launch.tiles])
    in_rows, in_columns = rows - launch.rows.start, columns - launch.columns.start
    for name, got, want in (
        ("out", block.out[in_rows], exact[0][rows]),
        ("lse", block.lse[:, in_rows], exact[1][:, rows]),
        ("dq", grads.dq[in_rows], exact[2][rows]),
        ("dk", grads.dk[in_columns], exact[3][columns]),
        ("dv", grads.dv[in_columns], exact[4][columns]),
    ):
        assert len(got) == len(want)
        error = (got.double() - want).abs().max().item()
        assert error <= 1e-4, f"{name} of {launch} is off by {error}"
