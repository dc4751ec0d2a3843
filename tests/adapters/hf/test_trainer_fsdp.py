"""`Trainer` with FSDP2, 2 and 2 x 2 processes: the losses and the weights of one process, step by step."""

from __future__ import annotations

import tempfile
from importlib.metadata import version

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import build
from adapters.hf.test_trainer import as_launched, by_hand, difference, evaluation, padded, rows, settings


class WithFsdp(Trainer):
    """On CPUs accelerate takes DDP even when it is asked for FSDP, so this sets what it would have set for GPUs."""

    def create_accelerator_and_postprocess(self) -> None:
        from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["MistralDecoderLayer"],
            activation_checkpointing=True,
        )
        self.is_fsdp_enabled = True


@pytest.mark.parametrize("size", [2, 4])
def test_fsdp_of_accelerate(size: int) -> None:
    exact(processes.run(size, with_accelerate, timeout=180))


@pytest.mark.skipif(version("transformers") < "5", reason="transformers 4.57 shards no model as it is loaded")
@pytest.mark.parametrize("size", [2, 4])
def test_sharded_as_it_is_loaded(size: int) -> None:
    exact(processes.run(size, with_loading, timeout=180))


def exact(results: list[compare.Errors]) -> None:
    for errors in results:
        assert errors
        assert max(errors.values()) <= 1e-5, errors


def with_accelerate() -> compare.Errors:
    as_launched()
    return trained(WithFsdp, build("mistral"))


def with_loading() -> compare.Errors:
    from transformers.distributed import DistributedConfig

    as_launched()
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    if dist.get_rank() == 0:
        build("mistral").save_pretrained(folder[0])
    dist.barrier()
    everywhere = DistributedConfig(fsdp_size=dist.get_world_size())
    model = AutoModelForCausalLM.from_pretrained(folder[0], distributed_config=everywhere, dtype=torch.float32)
    return trained(Trainer, model)


def trained(kind: type[Trainer], model: PreTrainedModel, **changed: object) -> compare.Errors:
    """All eight texts in every step, in two batches, over all processes: two of them to a text."""
    expected = build("mistral")
    losses = by_hand(expected)
    arguments = TrainingArguments(**settings(per_device_train_batch_size=8 // dist.get_world_size(), **changed))
    trainer = kind(model, arguments, train_dataset=rows(), eval_dataset=rows([9] * 8), data_collator=padded)
    ringattn.hf.parallelize(trainer, cp=2).train()
    assert isinstance(model, FSDPModule) and all(isinstance(weight, DTensor) for weight in model.parameters())  # type: ignore[attr-defined]
    evaluated = trainer.evaluate()["eval_loss"]
    errors = difference(trainer, model, losses, expected)
    return errors | {"evaluated": abs(evaluated / evaluation(expected) - 1)}
