"""One of the demo's processes: it holds a share of the text, and runs the whole model on it."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from multiprocessing import Queue
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ringattn.cli import exact, smollm
from ringattn.tensors import distance


@dataclass(frozen=True, slots=True)
class Job:
    """What every process needs to know. `files` holds weights.pt, ids.pt and the reference's logits.pt."""

    config: Any
    files: Path
    cp: int
    layout: str
    route: str
    threads: int


class Event(NamedTuple):
    """What a process tells the one that shows it: "ready", "layer", "done" with a `Result`, "failed" with a message."""

    rank: int
    kind: str
    content: Any = None


class Result(NamedTuple):
    """What one rank found. The loss is the whole text's; the logits are those of the rank's own tokens."""

    loss: float
    difference: float  # the largest between a logit and the reference's
    largest: float  # of the reference's logits
    seconds: float


def main(rank: int, job: Job, port: int, events: Queue[Event]) -> None:
    """The process's program: everything that happens goes into `events`."""
    try:
        torch.set_num_threads(job.threads)
        events.put(Event(rank, "done", _run(rank, job, port, events)))
    except Exception:  # noqa: BLE001 - whatever went wrong here is to be shown there
        events.put(Event(rank, "failed", traceback.format_exc()))


def _run(rank: int, job: Job, port: int, events: Queue[Event]) -> Result:
    # Mapped, not read: all processes share the pages of one file.
    weights = torch.load(job.files / "weights.pt", mmap=True)
    from transformers import LlamaForCausalLM

    import ringattn.hf
    from ringattn.hf.attention import attention_forward
    from ringattn.hf.register import NAME

    store = dist.TCPStore("127.0.0.1", port)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=job.cp)
    with smollm.quiet():
        model = LlamaForCausalLM.from_pretrained(
            None, config=job.config, state_dict=weights, dtype=torch.float32
        ).eval()
    ringattn.hf.parallelize(model, layout=job.layout, route=job.route)
    exact.use(model, NAME, attention_forward)
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *_: events.put(Event(rank, "layer")))
    ids = torch.load(job.files / "ids.pt")
    events.put(Event(rank, "ready"))
    dist.barrier()
    start = time.perf_counter()
    with torch.inference_mode():
        output = model(input_ids=ids, labels=ids)
    seconds = time.perf_counter() - start
    cp = ringattn.ContextParallel(layout=job.layout, cu_seqlens=[0, ids.shape[1]])
    mine = cp.shard(torch.arange(ids.shape[1]), dim=0)
    result = Result(output.loss.item(), *_compared(job, output.logits, mine), seconds)
    dist.destroy_process_group()
    return result


def _compared(job: Job, logits: Tensor, mine: Tensor) -> tuple[float, float]:
    """The largest difference of the logits of this rank's tokens, (1, tokens, vocabulary), and the reference's largest.

    mine: (tokens,), their indices in the text.
    """
    reference = torch.load(job.files / "logits.pt", mmap=True)[0]
    difference = largest = 0.0
    # Some hundred rows at a time: logits of all of them would be there three times.
    for start in range(0, len(mine), 256):
        part, expected = logits[0, start : start + 256], reference[mine[start : start + 256]]
        difference = max(difference, distance(part, expected))
        largest = max(largest, expected.abs().max().item())
    return difference, largest
