"""The program of test_alone: two ranks of attention with ringattn-core alone, over a transport of one's own.

It needs nothing of this repository but the installed wheel, and prints what our modules asked to be imported.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any

asked: list[tuple[str, str]] = []  # (module of ours, what it imports)
original = builtins.__import__


def spy(name: str, scope: Any = None, local: Any = None, names: Any = (), level: int = 0) -> Any:
    importer = (scope or {}).get("__name__", "")
    if importer.startswith("ringattn"):
        asked.extend((importer, full) for full in (name, *(f"{name}.{part}" for part in names or ())))
    return original(name, scope, local, names, level)


builtins.__import__ = spy  # type: ignore[assignment]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from ringattn_core.kernels.choose import choose  # noqa: E402
from ringattn_core.plan.layout import zigzag  # noqa: E402
from ringattn_core.plan.planner import plan  # noqa: E402
from ringattn_core.plan.route import ring  # noqa: E402
from ringattn_core.plan.schedule import Schedule, Step  # noqa: E402
from ringattn_core.run.execute import attend, attend_backward  # noqa: E402
from ringattn_core.run.kernel import Options  # noqa: E402
from ringattn_core.run.transport import KV  # noqa: E402

SIZE, TOKENS, HEADS, DIM = 2, 20, 2, 8


class Queues:
    """A ring over two queues: keys go to the other rank, and their gradients come back."""

    def __init__(self, schedule: Schedule, kv: KV, queues: list[SimpleQueue[KV]]) -> None:
        self.schedule, self.kv, self.grads = schedule, kv, list[KV]()
        self.inbox, self.outbox = queues[schedule.cp_rank], queues[1 - schedule.cp_rank]

    def __iter__(self) -> Iterator[tuple[Step, KV]]:
        kv = self.kv
        for step in self.schedule.steps:
            if step.hop:
                self.outbox.put(kv)
                kv = self.inbox.get()
            yield step, kv

    def send_grads(self, step: Step, grads: KV) -> None:
        if step.hop:
            self.outbox.put(grads)
            grads = self.inbox.get()
        self.grads.append(grads)

    def finish(self) -> KV:
        return KV(*(torch.stack(parts).sum(0) for parts in zip(*self.grads, strict=True)))


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("ihd,jhd->hij", q, k) * DIM**-0.5
    scores = scores.masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -torch.inf)
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)


def main() -> None:
    torch.manual_seed(0)
    q, k, v, dout = (torch.randn(TOKENS, HEADS, DIM, dtype=torch.float64) for _ in range(4))
    queues: list[SimpleQueue[KV]] = [SimpleQueue() for _ in range(SIZE)]
    found: dict[int, tuple[Tensor, ...]] = {}

    def rank_main(rank: int, kernel_name: str) -> None:
        schedule = plan(zigzag, ring, (0, TOKENS), (0, TOKENS), rank, SIZE, window=(-1, 0))
        rows = torch.tensor(schedule.queries.positions(rank))
        own, kv, options = q[rows], KV(k[rows], v[rows]), Options(DIM**-0.5)
        kernel = choose(own, *kv, schedule, options, kernel_name)
        result = attend(Queues(schedule, kv, queues), kernel, own, options)
        grads = attend_backward(Queues(schedule, kv, queues), kernel, dout[rows], own, result, options)
        found[rank] = (rows, result.out, *grads[:3])

    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = dense(*leaves)
    truth = (out, *torch.autograd.grad((out * dout).sum(), leaves))
    for kernel_name in ("reference", "torch_flash"):
        threads = [Thread(target=rank_main, args=(rank, kernel_name)) for rank in range(SIZE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for rows, *results in (found.pop(rank) for rank in range(SIZE)):
            for result, expected in zip(results, truth, strict=True):
                torch.testing.assert_close(result, expected[rows], rtol=0, atol=1e-12)

    print("modules:", len({importer for importer, _ in asked}))
    print("distributed:", sorted({pair for pair in asked if pair[1].startswith("torch.distributed")}))
    optional = ("transformers", "flash_attn", "cupy", "triton", "ringattn", "ringattn_comms")
    print("optional:", [name for name in optional if name in sys.modules])


main()
