"""Makes the ranks that share a sequence one process to a `Trainer`, also to the trainers of TRL.

They get the same batches, are counted once (see `data_parallel`), and predictions are those of whole rows. The hooks of
the model shard the batches, and every rank gets the loss of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from math import gcd
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from ringattn.hf import unsupported
from ringattn.hf.data_parallel import counting, gathering, narrow, widen
from ringattn.hf.hook import Hooks
from ringattn.hf.outputs import PER_TOKEN
from ringattn_core.errors import UnsupportedError

# Methods of a trainer that run with other numbers of processes while its sequences are shared.
_LOADERS = ("get_train_dataloader", "get_eval_dataloader", "get_test_dataloader")
_COUNTING = ("get_total_train_batch_size",)
_GATHERING = ("train", "evaluate", "predict")


def models(trainer: Trainer) -> list[nn.Module]:
    """The model that is trained, and the reference or the teacher that a trainer of TRL compares it with."""
    others = (getattr(trainer, name, None) for name in ("ref_model", "teacher_model"))
    return list(dict.fromkeys([trainer.model, *(each for each in others if each is not None)]))


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
    """Raise UnsupportedError for a trainer that counts past its accelerator, or whose batches one process makes."""
    if getattr(trainer.args, "use_legacy_prediction_loop", False):
        raise UnsupportedError(
            f"{type(trainer).__name__} has use_legacy_prediction_loop=True, which counts every process by itself, also "
            "those that share a sequence: leave it out."
        )
    if "rollout_queue" in vars(trainer):
        raise UnsupportedError(
            f"{type(trainer).__name__} trains on completions from a queue that its first process alone reads, and "
            "hands them out one row to a process, so that no processes can share a sequence. Use a trainer that "
            "generates in the processes that train, such as GRPOTrainer, RLOOTrainer or DistillationTrainer."
        )


def check_groups(trainer: Trainer, dp_size: int) -> None:
    """Raise ValueError where the completions that GRPO and its kind generate at a time are no whole groups.

    dp_size: the number of processes, those that share a sequence being one.
    """
    args = trainer.args
    if getattr(args, "steps_per_generation", None) is None:
        return  # Without it, TRL's configurations count the completions of each process by themselves.
    _check_groups(trainer, "num_generations", "per_device_train_batch_size", args.steps_per_generation, dp_size)
    if trainer.eval_dataset is not None:
        _check_groups(trainer, "num_generations_eval", "per_device_eval_batch_size", 1, dp_size)


def _check_groups(trainer: Trainer, group: str, batch: str, steps: int, dp_size: int) -> None:
    size, rows = getattr(trainer, group), getattr(trainer.args, batch)
    completions = rows * steps * dp_size
    if completions % size == 0:
        return
    sizes = ", ".join(str(number) for number in range(2, completions + 1) if completions % number == 0)
    raise ValueError(
        f"{type(trainer).__name__} compares {group}={size} completions of one prompt. The processes that share a "
        f"sequence count as one, which leaves {dp_size}, and {batch}={rows} x {steps} (steps_per_generation) x "
        f"{dp_size} = {completions} completions at a time are no whole groups: {batch} has to be a multiple of "
        f"{size // gcd(size, steps * dp_size)}" + (f", or {group} one of {sizes}." if sizes else ".")
    )


def computes_loss(trainer: Trainer) -> bool:
    """Does the trainer compute its loss itself, from the outputs of the model?

    Trainers of TRL whose models return log-probabilities do so too. They have no logits that would be gathered.
    """
    kind = type(trainer)
    overrides = any(getattr(kind, name) is not getattr(Trainer, name) for name in ("compute_loss", "training_step"))
    return overrides or trainer.compute_loss_func is not None or trainer.args.label_smoothing_factor != 0


def explain_shards(trainer: Trainer) -> None:
    """Let an error in a loss that the trainer computes from the logits of this rank say what to do."""
    vars(trainer)["compute_loss"] = partial(_explained, trainer)


def _explained(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
    try:
        return type(trainer).compute_loss(trainer, *args, **kwargs)
    except (IndexError, RuntimeError, ValueError) as error:
        if type(error) not in (IndexError, RuntimeError, ValueError):
            raise  # a subclass, such as out of memory
        raise UnsupportedError(
            f"The loss of {type(trainer).__name__} failed with logits='shards', which leaves the model's outputs those "
            f"of this rank's tokens: {error}. Leave logits out, or say logits='whole', for a loss from whole logits; "
            "or take the log-probabilities of targets from shards with ringattn.hf.token_logprobs."
        ) from error


def share_batches(trainer: Trainer, mesh: DeviceMesh) -> None:
    """Give all ranks along "cp" the same batches, and count them once in everything that the trainer gathers."""
    unshare_batches(trainer)
    narrow(trainer.accelerator, mesh["dp"])
    for name in (*_LOADERS, *_COUNTING, *_GATHERING):
        vars(trainer)[name] = _along_dp(trainer, name, mesh["dp"])
    vars(trainer)["prediction_step"] = partial(_prediction_step, trainer)
    vars(trainer)["floating_point_ops"] = partial(_floating_point_ops, trainer, mesh["cp"].size())


def unshare_batches(trainer: Trainer) -> None:
    """Undo `share_batches`, if it was called."""
    widen(trainer.accelerator)
    for name in (*_LOADERS, *_COUNTING, *_GATHERING, "prediction_step", "floating_point_ops", "compute_loss"):
        vars(trainer).pop(name, None)


def _along_dp(trainer: Trainer, name: str, dp: DeviceMesh) -> Callable[..., Any]:
    """A method of this trainer that counts the ranks along "cp" as one process."""
    method = getattr(type(trainer), name)

    def along_dp(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            if name == "train":
                _unprepare(trainer)
            else:  # Training also writes files, and chooses the process for that by its rank.
                stack.enter_context(counting(trainer.args, dp, with_rank=name in _LOADERS))
            if name in _GATHERING:
                stack.enter_context(gathering(dp))
            return method(trainer, *args, **kwargs)

    return along_dp


def _unprepare(trainer: Trainer) -> None:
    """Let training wrap the model in DDP if `evaluate` or `predict` has prepared it without.

    Accelerate does not prepare a model again, and gradients would not be averaged over ranks.
    """
    wrappers = DistributedDataParallel, FullyShardedDataParallel, FSDPModule
    if trainer.is_deepspeed_enabled or any(isinstance(each, wrappers) for each in trainer.model_wrapped.modules()):
        return
    trainer.model_wrapped = trainer.model
    vars(trainer.model).pop("_is_accelerate_prepared", None)


def _prediction_step(trainer: Trainer, model: nn.Module, inputs: Any, prediction_loss_only: bool, **kwargs: Any) -> Any:
    """A step of `evaluate` or `predict`, with outputs of whole rows if any are wanted besides the loss."""
    with nullcontext() if prediction_loss_only else _whole_outputs(trainer):
        return type(trainer).prediction_step(trainer, model, inputs, prediction_loss_only, **kwargs)


def _floating_point_ops(trainer: Trainer, cp_size: int, inputs: Any) -> float:
    """This rank's share of the operations in a batch. A trainer adds those of all processes, past its accelerator."""
    operations: float = type(trainer).floating_point_ops(trainer, inputs)
    return operations / cp_size


@contextmanager
def _whole_outputs(trainer: Trainer) -> Iterator[None]:
    hooks = [found for each in models(trainer) if (found := Hooks.of(unsupported.outermost(each)))]
    before = [each.whole for each in hooks]
    for each in hooks:
        each.whole = PER_TOKEN
    try:
        yield
    finally:
        for each, names in zip(hooks, before, strict=True):
            each.whole = names
