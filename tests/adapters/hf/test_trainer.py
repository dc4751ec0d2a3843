"""`Trainer` and TRL's trainers on 2 x 2 processes: the losses and the weights of one process, step by step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import build

LENGTHS = (7, 12, 3, 18, 9, 5, 14, 11)
STEPS, RATE = 3, 0.05


def padded(texts: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Texts padded at the right to the longest of them."""
    length = max(len(text["input_ids"]) for text in texts)
    parts = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        name: torch.tensor([text[name] + [filler] * (length - len(text[name])) for text in texts])
        for name, filler in parts.items()
    }


def rows(lengths: Sequence[int] = LENGTHS) -> list[dict[str, list[int]]]:
    """Texts of these lengths. No token predicts the first; versions of Trainer differ in whether they count it."""
    texts = [compare.tokens(1, length, seed)[0].tolist() for seed, length in enumerate(lengths)]
    return [{"input_ids": text, "labels": [-100, *text[1:]], "attention_mask": [1] * len(text)} for text in texts]


def by_hand(model: nn.Module) -> list[float]:
    """All texts in every step, one by one, in one process: the losses, and the trained model."""
    losses, items = [], sum(length - 1 for length in LENGTHS)
    for _ in range(STEPS):
        model.zero_grad()
        total = 0.0
        for row in rows():
            ids = torch.tensor([row["input_ids"]])
            loss = model(input_ids=ids, labels=torch.tensor([row["labels"]]), num_items_in_batch=items).loss
            loss.backward()
            total += loss.item()
        losses.append(total)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=RATE)
    return losses


def settings(**changed: Any) -> dict[str, Any]:
    """Two rows per process and two batches per step are all eight texts, in whatever order."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 2,
        "num_train_epochs": STEPS,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 1e9,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    } | changed


def as_launched() -> None:
    """What torchrun sets, and accelerate looks for."""
    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world, MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")


def difference(trainer: Trainer, model: nn.Module, losses: list[float], expected: nn.Module) -> compare.Errors:
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(found) == STEPS
    pairs = zip(model.named_parameters(), expected.parameters(), strict=True)
    weights = {name: compare.relative(whole(ours), theirs.detach()) for (name, ours), theirs in pairs}
    return {"loss": compare.relative(torch.tensor(found), torch.tensor(losses))} | compare.worst(weights)


def whole(weight: Tensor) -> Tensor:
    """All of a weight, of which FSDP keeps a part."""
    return weight.full_tensor().detach() if isinstance(weight, DTensor) else weight.detach()


def test_trainer() -> None:
    for found in processes.run(4, with_trainer, timeout=180):
        wrong = {name: errors for name, errors in found.items() if max(errors.values()) > 1e-5}
        assert found and not wrong


def with_trainer() -> dict[str, compare.Errors]:
    as_launched()
    expected = build("mistral")
    losses = by_hand(expected)
    return {
        "padded": trained(losses, expected),
        "one row": trained(losses, expected, per_device_train_batch_size=1, gradient_accumulation_steps=4),
        "checkpointed": trained(losses, expected, gradient_checkpointing=True),
        "evaluated first": trained(losses, expected, evaluate_first=True),
    }


def test_what_a_trainer_cannot_be() -> None:
    trainer = Trainer(build("llama"), TrainingArguments(**settings()), data_collator=padded)
    with pytest.raises(ValueError, match="several processes: start the program with torchrun"):
        ringattn.hf.parallelize(trainer, cp=2)
    with pytest.raises(ValueError, match=r"parallelize\(trainer, cp=8\)"):
        ringattn.hf.parallelize(trainer)
    with pytest.raises(ValueError, match="cp is for a Trainer"):
        ringattn.hf.parallelize(build("llama"), cp=2)
    trainer.args.use_legacy_prediction_loop = True  # of transformers 4
    with pytest.raises(ringattn.UnsupportedError, match="which counts every process by itself"):
        ringattn.hf.parallelize(trainer, cp=2)


def trained(
    losses: list[float], expected: nn.Module, *, evaluate_first: bool = False, **changed: Any
) -> compare.Errors:
    model = build("mistral")
    arguments = TrainingArguments(**settings(**changed))
    trainer = Trainer(model, arguments, train_dataset=rows(), eval_dataset=rows([9] * 8), data_collator=padded)
    assert ringattn.hf.parallelize(trainer, cp=2) is trainer
    if evaluate_first:
        trainer.evaluate()  # which prepares the model without DDP
    trainer.train()
    evaluated = trainer.evaluate()["eval_loss"]
    return difference(trainer, model, losses, expected) | {"evaluated": abs(evaluated / evaluation(expected) - 1)}


def evaluation(model: nn.Module) -> float:
    """Of texts of one length: versions of Trainer differ in how they weigh others."""
    with torch.no_grad():
        return model(**padded(rows([9] * 8))).loss.item()
