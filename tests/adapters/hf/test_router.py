"""The loss that balances experts, over tokens that are spread over two ranks, as in one process."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import build

SETTINGS = {"output_router_logits": True, "router_aux_loss_coef": 2.0}  # large enough to be seen in every gradient
IDS = compare.tokens(2, 21)
RIGHT = torch.arange(21) < torch.tensor([[15], [21]])
LEFT = RIGHT.flip(1)
PACKED = torch.cat([torch.arange(8), torch.arange(13)])[None]


def batches() -> dict[str, dict[str, Any]]:
    def padded(real: Tensor) -> dict[str, Any]:
        predicted = real & real.roll(1, 1)  # not the first real token of a row, which padding would have to predict
        return {"input_ids": IDS, "attention_mask": real.long(), "labels": IDS.masked_fill(~predicted, -100)}

    return {
        "plain": {"input_ids": IDS, "labels": IDS},
        "padded right": padded(RIGHT),
        "padded left": padded(LEFT),
        "packed": {"input_ids": IDS[:1], "labels": IDS[:1], "position_ids": PACKED},
        "fewer tokens than ranks": {"input_ids": IDS[:, :1], "labels": IDS[:, :1]},
    }


def test_router_loss() -> None:
    for found in processes.run(2, router_losses, timeout=240):
        wrong = {name: errors for name, errors in found.items() if not max(errors.values()) <= 1e-5}
        assert found and not wrong


def router_losses() -> dict[str, compare.Errors]:
    found = {}
    for name in ("mixtral", "qwen3_moe"):
        for kind, batch in batches().items():
            model = build(name, **SETTINGS)
            alone = copy.deepcopy(model)
            ringattn.hf.parallelize(model)
            losses = [sum_of(each(**batch, use_cache=False)) for each in (model, alone)]
            for loss in losses:
                loss.sum().backward()
            found[f"{name}, {kind}"] = {"losses": compare.relative(*losses)} | compare.worst(
                compare.gradients(model, alone)
            )
    checkpointed = build("mixtral", **SETTINGS).train()
    checkpointed.gradient_checkpointing_enable()
    found["checkpointed"] = compare.errors(checkpointed, batches()["plain"])
    return found | {"another model in this process": untouched()}


def sum_of(output: Any) -> Tensor:
    """The loss of the model, and that of its routers, which TRL adds itself; no targets leave nothing of the first."""
    assert type(output.router_logits) is tuple
    return torch.stack([output.loss.nan_to_num(), output.aux_loss])


def untouched() -> compare.Errors:
    """The function that is wrapped is that of all models of the kind; those in one process are not to notice."""
    alone, batch = build("mixtral", **SETTINGS), batches()["padded right"]
    whole = alone(**batch).router_logits
    real = batch["attention_mask"].flatten().bool()
    routed = torch.cat([layer[real] for layer in whole]).softmax(-1)
    shares = torch.zeros_like(routed).scatter_(1, routed.topk(2).indices, 1.0).mean(0)
    return {"aux_loss": compare.relative(alone(**batch).aux_loss, 4 * (shares * routed.mean(0)).sum())}


def test_trl() -> None:
    """TRL asks for the loss by itself, adds it by itself, and logs it."""
    pytest.importorskip("trl")
    (alone,) = processes.run(1, fine_tuned, timeout=180)
    for found in processes.run(2, fine_tuned, timeout=240):
        for kind, (expected, trained) in alone.items():
            metrics, weights = found[kind]
            assert "aux_loss" in expected
            for name, values in expected.items():
                assert metrics[name] == pytest.approx(values, rel=1e-4, abs=1e-5), (kind, name)
            for name, weight in trained.items():
                assert compare.relative(weights[name], weight) <= 1e-5, (kind, name)


def fine_tuned() -> dict[str, Any]:
    from adapters.hf import test_trl
    from adapters.hf.test_trainer import as_launched

    as_launched()
    dist.barrier()
    return {
        kind: test_trl.run(test_trl.fine_tuning(packing=packing, model="mixtral", router_aux_loss_coef=1.0))
        for kind, packing in {"packed": True, "padded": False}.items()
    }
