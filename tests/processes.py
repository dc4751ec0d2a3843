"""Ranks as real processes: a function of a test file on several processes of this machine, connected by gloo or NCCL.

Processes are forked from a server that has torch imported already, so that a launch takes tenths of a second. They get
the file and the name of the function, not the function, because a test file is no module that a process could import.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "ringattn"])


def run(
    size: int,
    function: Callable[..., Any],
    *arguments: Any,
    timeout: float = 60.0,
    backend: str = "gloo",
    bound: bool = False,
    group_timeout: float | None = None,
    ending: Collection[int] = (),
) -> list[Any]:
    """Call a function of a module's top level on `size` processes of one default group; what each returned, by rank.

    With the backend "nccl" each process has a GPU of its own, to which its default group may be `bound`.
    Fails with the traceback of the first rank that raised or died, or with a TimeoutError after `timeout` seconds; the
    other processes are killed then. Messages in the group are waited for as long, or for `group_timeout` seconds.
    Ranks that are `ending` may die meanwhile, and return None.
    """
    home = Path(sys.modules[function.__module__].__file__ or "")
    deadline = monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(size)]
        ranks = [
            _CONTEXT.Process(
                target=_main,
                args=(
                    rank,
                    size,
                    f"{folder}/store",
                    group_timeout or timeout,
                    not ending,
                    backend,
                    bound,
                    home,
                    function.__name__,
                    arguments,
                    sender,
                ),
                daemon=True,
            )
            for rank, (_, sender) in enumerate(pipes)
        ]
        try:
            for process, (_, sender) in zip(ranks, pipes, strict=True):
                process.start()
                sender.close()
            results = _results([receiver for receiver, _ in pipes], deadline, timeout, ending)
            for process in ranks:
                process.join(5.0)
            return results
        finally:
            for process in (process for process in ranks if process.is_alive()):
                process.kill()
                process.join()


def _results(receivers: list[Connection], deadline: float, timeout: float, ending: Collection[int]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(receivers):
        pending = [receiver for rank, receiver in enumerate(receivers) if rank not in results]
        ready = wait(pending, timeout=max(0.0, deadline - monotonic()))
        if not ready:
            missing = [rank for rank in range(len(receivers)) if rank not in results]
            raise TimeoutError(f"ranks {missing} of {len(receivers)} were not done after {timeout:g} s")
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank = receivers.index(receiver)
            try:
                done, results[rank] = pickle.loads(receiver.recv_bytes())
            except EOFError:
                if rank in ending:
                    done, results[rank] = True, None
                    continue
                raise RuntimeError(f"rank {rank} of {len(receivers)} died without a word") from None
            if not done:
                raise RuntimeError(f"rank {rank} of {len(receivers)} raised:\n\n{results[rank]}")
    return [results[rank] for rank in range(len(receivers))]


def _main(
    rank: int,
    size: int,
    store: str,
    timeout: float,
    together: bool,
    backend: str,
    bound: bool,
    home: Path,
    name: str,
    arguments: tuple[Any, ...],
    sender: Connection,
) -> None:
    """The life of one process. Results travel as bytes, for tensors would travel as names of memory that ends here."""
    torch.set_num_threads(1)
    try:
        if backend == "nccl":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            backend,
            init_method=f"file://{store}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
            device_id=torch.device("cuda", rank) if bound else None,
        )
        result = True, getattr(_module(home), name)(*arguments)
    except BaseException:  # noqa: BLE001 - whatever it is, the test has to show it
        result = False, traceback.format_exc()
    sender.send_bytes(pickle.dumps(result))
    if result[0] and together:
        dist.barrier()  # A rank that ended sooner would cut connections that others are still making.
        dist.destroy_process_group()


def _module(home: Path) -> Any:
    spec = importlib.util.spec_from_file_location(home.stem, home)
    assert spec is not None and spec.loader is not None
    module = sys.modules[home.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
