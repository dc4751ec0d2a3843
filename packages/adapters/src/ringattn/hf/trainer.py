"""`Trainer`, and every trainer of TRL built on it: the ranks that share a sequence get the same batches.

The model's hooks do the rest: they shard the batches, and the loss they leave is right for every way in which a trainer
scales and averages it, because each token is counted by as many ranks as share it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import Trainer

from ringattn_core.errors import UnsupportedError

T = TypeVar("T", bound=Trainer)

_LOADERS = ("get_train_dataloader", "get_eval_dataloader", "get_test_dataloader")


def models(trainer: Trainer) -> list[nn.Module]:
    """The model that is trained, and the one that it is compared with, where a trainer of TRL has such a one."""
    reference = getattr(trainer, "ref_model", None)
    return [trainer.model] if reference is None else [trainer.model, reference]


def mesh_of(trainer: Trainer, cp: int) -> DeviceMesh:
    """A mesh of all processes, ("dp", "cp"), neighbours along "cp".

    Raises ValueError where cp does not divide the number of processes, or there is no process group.
    """
    if not dist.is_initialized():
        raise ValueError(
            "parallelize(trainer, cp=...) needs several processes: start the program with torchrun, or with accelerate "
            "launch."
        )
    world = dist.get_world_size()
    if cp not in range(1, world + 1) or world % cp:
        raise ValueError(f"cp must divide the number of processes, {world}, got {cp!r}.")
    return init_device_mesh(trainer.args.device.type, (world // cp, cp), mesh_dim_names=("dp", "cp"))


def check(trainer: Trainer) -> None:
    """Raise UnsupportedError for what a trainer does with outputs that a sharded model does not have."""
    if trainer.compute_metrics is not None:
        raise UnsupportedError(
            f"{type(trainer).__name__} has compute_metrics, which would get each sample once for every rank that holds "
            "a part of it. Evaluate the loss alone, or the metrics in a run without parallelize."
        )


def needs_whole_logits(trainer: Trainer) -> bool:
    """Does the trainer compute its loss from logits itself?"""
    return trainer.compute_loss_func is not None or trainer.args.label_smoothing_factor != 0


def share_batches(trainer: Trainer, mesh: DeviceMesh) -> None:
    """Let all ranks along "cp" get the same batches: each loader of this trainer divides them along "dp" alone."""
    for name in _LOADERS:
        # The class's own method, so that a second call does not wrap the first one's.
        setattr(trainer, name, _divided(trainer, getattr(type(trainer), name), mesh["dp"]))


def unshare_batches(trainer: Trainer) -> None:
    """Undo `share_batches`."""
    for name in _LOADERS:
        vars(trainer).pop(name, None)


def _divided(trainer: Trainer, method: Callable[..., Any], dp: DeviceMesh) -> Callable[..., Any]:
    def loader(*args: Any, **kwargs: Any) -> Any:
        from accelerate.data_loader import prepare_data_loader

        accelerator = trainer.accelerator
        # The method builds the loader, and would then have the accelerator divide it among all processes.
        accelerator.prepare = lambda loader: loader
        try:
            plain = method(trainer, *args, **kwargs)
        finally:
            del accelerator.prepare
        return prepare_data_loader(
            plain,
            device=accelerator.device,
            num_processes=dp.size(),
            process_index=dp.get_local_rank(),
            split_batches=accelerator.split_batches,
            put_on_device=accelerator.device_placement,
            rng_types=list(accelerator.rng_types),
            # Every process reads the data itself: the process that would hand them out knows nothing of the mesh.
            dispatch_batches=False,
            even_batches=accelerator.even_batches,
            use_seedable_sampler=accelerator.use_seedable_sampler,
            non_blocking=accelerator.non_blocking,
        )

    return loader
