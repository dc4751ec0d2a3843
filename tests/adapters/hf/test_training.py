"""What training puts around a model: checkpoints, adapters, compilers, several passes in flight, sharded weights."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import build

IDS = compare.tokens(2, 19)
BATCH = {"input_ids": IDS, "labels": IDS}
PACKED = {"input_ids": IDS, "labels": IDS, "position_ids": torch.tensor([[*range(7), *range(12)]] * 2)}


def test_around_a_model() -> None:
    for found in processes.run(2, around_a_model, timeout=180):
        wrong = {name: errors for name, errors in found.items() if max(errors.values()) > 1e-5}
        assert found and not wrong


def around_a_model() -> dict[str, compare.Errors]:
    found = {f"checkpoints, reentrant {kind}": checkpoints(reentrant=kind) for kind in (False, True)}
    found |= {f"two in flight, reentrant {kind}": in_flight(reentrant=kind) for kind in (None, False, True)}
    found["a copy"] = copied()
    found["compiled"] = compiled()
    found["autocast"] = autocast()
    found["accumulated"] = accumulated()
    found["attention dropout"] = dropout()
    return found


def checkpoint(model: PreTrainedModel, *, reentrant: bool) -> None:
    """Recompute layers in backward; both versions of transformers know the call, the newer by another name too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()  # or a reentrant one would find nothing to differentiate


def checkpoints(*, reentrant: bool) -> compare.Errors:
    model = build("gemma2").train()
    checkpoint(model, reentrant=reentrant)
    return compare.errors(model, PACKED)


def in_flight(*, reentrant: bool | None) -> compare.Errors:
    """Both forward passes before either backward pass, with other borders, as DPO and GRPO have them."""
    model = build("mistral").train()
    if reentrant is not None:
        checkpoint(model, reentrant=reentrant)
    alone = copy.deepcopy(model)
    ringattn.hf.parallelize(model)
    for each in (alone, model):
        first, second = each(**PACKED, use_cache=False).loss, each(**BATCH, use_cache=False).loss
        (first - 2.0 * second).backward()
    return compare.worst(compare.gradients(model, alone))


def copied() -> compare.Errors:
    """A copy is parallelized as the model is, and restored by itself."""
    model = ringattn.hf.parallelize(build("mistral"))
    other = copy.deepcopy(model)
    found = compare.errors(ringattn.hf.restore(other, "eager"), BATCH)
    assert compare.relative(model(**BATCH).loss, other(**BATCH).loss) <= 1e-5
    return found | {"unsharded": compare.relative(*(ringattn.hf.unshard(m, m(**BATCH).logits) for m in (model, other)))}


def compiled() -> compare.Errors:
    model = build("llama")
    alone = copy.deepcopy(model)
    alone(**BATCH).loss.backward()
    loss = torch.compile(ringattn.hf.parallelize(model), backend="aot_eager")(**BATCH).loss
    loss.backward()
    return {"loss": compare.relative(loss, alone(**BATCH).loss)} | compare.worst(compare.gradients(model, alone))


def autocast() -> compare.Errors:
    """bfloat16 rounds at every step, so that one process differs from itself in float32 as much as several do."""
    exact, alone, model = (build("llama") for _ in range(3))
    losses = [exact(**BATCH).loss]
    ringattn.hf.parallelize(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses += [each(**BATCH).loss for each in (alone, model)]
    for loss in losses:
        loss.backward()
    compare.average(model)
    pairs = {"loss": losses} | {
        name: [dict(each.named_parameters())[name].grad for each in (exact, alone, model)]
        for name, _ in exact.named_parameters()
    }
    wrong = compare.Errors()
    for name, (precise, rounded, found) in pairs.items():
        error, allowed = compare.relative(found, precise), 2 * compare.relative(rounded, precise)
        wrong[name] = 0.0 if error <= allowed < math.inf else error
    return compare.worst(wrong)


def accumulated() -> compare.Errors:
    """Three batches of different numbers of targets, weighted as Trainer does it."""
    model = build("llama")
    alone = copy.deepcopy(model)
    ringattn.hf.parallelize(model)
    parts = [compare.tokens(1, length, seed) for seed, length in enumerate((5, 17, 9))]
    items = sum(part.shape[1] - 1 for part in parts)
    for each in (alone, model):
        for part in parts:
            each(input_ids=part, labels=part, num_items_in_batch=items).loss.backward()
    return compare.worst(compare.gradients(model, alone))


def dropout() -> compare.Errors:
    """Masks are drawn by position: the same on every layout, and again when a checkpoint is computed a second time."""
    losses, models = [], [build("llama", attention_dropout=0.3).train() for _ in range(2)]
    for model, layout in zip(models, ("zigzag", "striped"), strict=True):
        torch.manual_seed(7)
        checkpoint(model, reentrant=False)
        losses.append(ringattn.hf.parallelize(model, layout=layout)(**BATCH).loss)
        losses[-1].backward()
    compare.average(models[1])
    found = {"loss": compare.relative(losses[0], losses[1])} | compare.worst(compare.gradients(*models))
    assert compare.relative(losses[0], build("llama")(**BATCH).loss) > 1e-3
    return found


def test_lora() -> None:
    pytest.importorskip("peft")
    for found in processes.run(2, lora, timeout=120):
        assert max(found.values()) <= 1e-5


def lora() -> compare.Errors:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        build("llama"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    found = compare.errors(model, BATCH)
    assert sum(parameter.grad is not None for parameter in model.parameters()) == 8
    return found


@pytest.mark.parametrize("size", [4])
def test_data_parallel(size: int) -> None:
    """2 x 2 processes: two batches of different lengths, each spread over two ranks, under DDP and FSDP2."""
    for found in processes.run(size, data_parallel, timeout=180):
        assert max(max(errors.values()) for errors in found.values()) <= 1e-5, found


def data_parallel() -> dict[str, compare.Errors]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "cp"))
    return {"DDP": with_ddp(mesh), "FSDP2": with_fsdp(mesh)}


def batches() -> list[dict[str, Any]]:
    """One for each place along "dp", over which the mean is taken too: hence half of all targets for each."""
    ids = [compare.tokens(2, length, seed) for seed, length in enumerate((15, 9))]
    return [{"input_ids": x, "labels": x, "num_items_in_batch": 2 * (14 + 8) / 2} for x in ids]


def alone_on_both() -> nn.Module:
    """The mean over all targets is the sum over the batches of half of what each gives."""
    alone = build("gpt_oss")
    for batch in batches():
        (alone(**batch).loss / 2).backward()
    return alone


def with_ddp(mesh: DeviceMesh) -> compare.Errors:
    model = ringattn.hf.parallelize(build("gpt_oss"), mesh["cp"])
    wrapped = DistributedDataParallel(model)
    assert ringattn.hf.parallelize(wrapped, mesh["cp"], layout="striped") is wrapped
    wrapped(**batches()[mesh.get_local_rank("dp")]).loss.backward()
    return compare.worst(compare.gradients(model, alone_on_both()))


def with_fsdp(mesh: DeviceMesh) -> compare.Errors:
    model = ringattn.hf.parallelize(build("gpt_oss"), mesh["cp"].get_group())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how the flat mesh is to be made in a later torch
        flat = mesh["dp", "cp"]._flatten("dp_cp")
    # It casts to what the tensors are; but to cast, it has to go through all that is handed to a layer.
    policy = MixedPrecisionPolicy(param_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mesh=flat, mp_policy=policy)
    fully_shard(model, mesh=flat, mp_policy=policy)
    model(**batches()[mesh.get_local_rank("dp")]).loss.backward()
    found = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    dist.barrier()
    return compare.worst(compare.beside(found, alone_on_both()))
