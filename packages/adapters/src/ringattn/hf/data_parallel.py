"""Make accelerate count and gather along the mesh axis "dp", so that ranks with the same batch are one process to it.

An `Accelerator` divides the batches of its loaders by `num_processes`, and treats gathered tensors as different
samples. That is right if all ranks have different batches. With context parallelism the ranks along "cp" have the same
batch, so a trainer's accelerator is given the size and the group of "dp" instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import operations, recursively_apply
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import TrainingArguments


class _AlongDp:
    """The base class that `narrow` adds before the class of an accelerator."""

    ringattn_dp: DeviceMesh

    @property
    def num_processes(self) -> int:
        return self.ringattn_dp.size()

    @property
    def process_index(self) -> int:
        return self.ringattn_dp.get_local_rank()

    def gather(self, tensor: Any) -> Any:
        with gathering(self.ringattn_dp):
            return cast(Any, super()).gather(tensor)

    def gather_for_metrics(self, input_data: Any, use_gather_object: bool = False) -> Any:
        with gathering(self.ringattn_dp):
            return cast(Any, super()).gather_for_metrics(input_data, use_gather_object)

    def reduce(self, tensor: Any, reduction: str = "sum", scale: float = 1.0) -> Any:
        # Only XLA uses `scale`.
        return recursively_apply(partial(_reduced, self.ringattn_dp, reduction), tensor, error_on_other_type=True)


def narrow(accelerator: Accelerator, dp: DeviceMesh) -> None:
    """Let an accelerator use the ranks along `dp` when it counts, gathers, and divides data among processes."""
    vars(accelerator).update(ringattn_dp=dp, ringattn_dispatch=accelerator.dispatch_batches)
    # Every process reads the data itself, because accelerate's dispatch from the main process ignores the mesh.
    accelerator.dataloader_config.dispatch_batches = False
    kind = type(accelerator)
    accelerator.__class__ = type(kind.__name__, (_AlongDp, kind), {"__module__": kind.__module__})


def widen(accelerator: Accelerator) -> None:
    """Undo `narrow`; without it, do nothing."""
    if "ringattn_dp" not in vars(accelerator):
        return
    accelerator.__class__ = type(accelerator).__mro__[2]  # after the class that `narrow` made and `_AlongDp`
    accelerator.dataloader_config.dispatch_batches = vars(accelerator).pop("ringattn_dispatch")
    del vars(accelerator)["ringattn_dp"]


@contextmanager
def gathering(dp: DeviceMesh) -> Iterator[None]:
    """In this context accelerate's functions `gather` and `gather_object` gather along `dp`.

    TRL imports these functions into its modules and calls them instead of the accelerator's methods.
    """
    everywhere = operations._gpu_gather, operations._gpu_gather_object
    operations._gpu_gather = partial(_gathered, dp)
    operations._gpu_gather_object = partial(_gathered_objects, dp)
    try:
        yield
    finally:
        operations._gpu_gather, operations._gpu_gather_object = everywhere


@contextmanager
def counting(args: TrainingArguments, dp: DeviceMesh, *, with_rank: bool) -> Iterator[None]:
    """In this context a trainer's arguments count the ranks along `dp`, for batch sizes, samplers and worker seeds.

    with_rank: use the rank along `dp` as the rank of this process, too. A trainer also decides by its rank which
    process writes files, so this is only for methods that make loaders.
    """
    before: dict[str, Any] = {"distributed_state": args.distributed_state}
    rank = dp.get_local_rank() if with_rank else args.process_index
    changed: dict[str, Any] = {"distributed_state": _Counted(args.distributed_state, dp.size(), rank)}
    if vars(args).get("steps_per_generation") is not None:
        # Such configurations of TRL count completions for all processes together, others for each process.
        rollouts = before["generation_batch_size"] = vars(args)["generation_batch_size"]
        changed["generation_batch_size"] = rollouts // args.world_size * dp.size()
    vars(args).update(changed)
    try:
        yield
    finally:
        vars(args).update(before)


class _Counted:
    """Accelerate's state with other numbers of processes."""

    def __init__(self, state: Any, num_processes: int, process_index: int) -> None:
        self._state, self.num_processes, self.process_index = state, num_processes, process_index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


def _gathered(dp: DeviceMesh, data: Any) -> Any:
    return recursively_apply(partial(_gathered_one, dp), data, error_on_other_type=True)


def _gathered_one(dp: DeviceMesh, x: Tensor) -> Tensor:
    x = (x[None] if x.dim() == 0 else x).contiguous()
    parts = [torch.empty_like(x) for _ in range(dp.size())]
    dist.all_gather(parts, x, group=dp.get_group())
    return torch.cat(parts)


def _gathered_objects(dp: DeviceMesh, data: list[Any]) -> list[Any]:
    parts: list[Any] = [None] * dp.size()
    dist.all_gather_object(parts, data, group=dp.get_group())
    return [each for part in parts for each in part]


def _reduced(dp: DeviceMesh, reduction: str, x: Tensor) -> Tensor:
    total = x.clone()
    dist.all_reduce(total, dist.ReduceOp.MAX if reduction == "max" else dist.ReduceOp.SUM, group=dp.get_group())
    return total / dp.size() if reduction == "mean" else total
