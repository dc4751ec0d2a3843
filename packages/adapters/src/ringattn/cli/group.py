"""The demo's processes as a group: started together, listened to, and ended together."""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, SpawnContext

import torch.distributed as dist

from ringattn.cli.worker import Event, Job, main


class FailedError(RuntimeError):
    """A process of the group has failed; the message is that of the process."""


def _context() -> ForkServerContext | SpawnContext:
    """How processes are started: not forked from this one, which has computed with threads.

    On Linux they are forked from a server that has imported transformers once for all of them.
    """
    if sys.platform != "linux":  # where processes that are forked after such imports may crash
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["ringattn.cli.worker", "ringattn.hf", "transformers.models.llama.modeling_llama"])
    return context


def run(job: Job) -> Iterator[Event]:
    """Run the job on `job.cp` processes and yield their events until all are done. Raises FailedError."""
    context = _context()
    events = context.Queue()
    # Where the processes find each other, on a free port of this machine.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    arguments = [(rank, job, store.port, events) for rank in range(job.cp)]
    processes = [context.Process(target=main, args=arguments[rank], daemon=True) for rank in range(job.cp)]
    for process in processes:
        process.start()
    try:
        left = job.cp
        while left:
            try:
                event: Event = events.get(timeout=1.0)
            except queue.Empty:
                dead = [rank for rank, process in enumerate(processes) if process.exitcode not in (None, 0)]
                if dead:
                    raise FailedError(
                        f"Rank {dead[0]} ended without a word: the machine may be out of memory."
                    ) from None
                continue
            if event.kind == "failed":
                raise FailedError(f"Rank {event.rank} has failed:\n{event.content}")
            left -= event.kind == "done"
            yield event
    finally:
        for process in processes:
            if left:
                process.terminate()
            process.join()
