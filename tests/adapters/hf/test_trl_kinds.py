"""TRL's preference trainers whose losses stand outside the model, on two processes that share their texts."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import build
from adapters.hf.test_trainer import as_launched, settings
from adapters.hf.test_trl import tokenizer

pytest.importorskip("trl")

NUMBERS = range(5, 9)
PAIRS = [{"prompt": f"{n} {n + 1}", "chosen": f" {n} {n} 4 5", "rejected": f" {n} 3 4"} for n in NUMBERS]
LABELLED = [{"prompt": f"{n} {n + 1}", "completion": f" {n} {n} 4 5", "label": n % 2 == 0} for n in NUMBERS]
REFERRED = [pair | {"reference": f" {pair['chosen']} 9"} for pair in PAIRS]
# Where each trainer is, its data, and what its configuration gets.
KINDS: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "CPO": ("experimental.cpo", PAIRS, {}),
    "CPO as SimPO": ("experimental.cpo", PAIRS, {"loss_type": "simpo", "cpo_alpha": 0.0}),
    "KTO": ("trainer", LABELLED, {}),
    "TPO": ("experimental.tpo", REFERRED, {}),
}


def test_preference_trainers_train_as_in_one_process() -> None:
    (alone,), *shared = (processes.run(size, train, timeout=180) for size in (1, 2))
    for found in shared[0]:
        for kind, trained in alone.items():
            for name, weight in trained.items():
                assert compare.relative(found[kind][name], weight) <= 1e-5, (kind, name)
    start = dict(build("llama").named_parameters())
    for kind, trained in alone.items():
        assert any(compare.relative(weight, start[name].detach()) > 1e-4 for name, weight in trained.items()), kind


def train() -> dict[str, dict[str, Tensor]]:
    """The weights after an epoch with each trainer."""
    as_launched()
    found = {}
    for kind in KINDS:
        trainer = make(kind)
        if dist.get_world_size() > 1:
            ringattn.hf.parallelize(trainer, cp=2)
        trainer.train()
        found[kind] = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    return found


def make(name: str) -> Any:
    from datasets import Dataset

    where, data, changed = KINDS[name]
    module, kind = import_module(f"trl.{where}"), name.split(maxsplit=1)[0]
    config, trainer = getattr(module, f"{kind}Config"), getattr(module, f"{kind}Trainer")
    known = inspect.signature(config).parameters
    arguments = {"num_train_epochs": 1, "bf16": False, "per_device_train_batch_size": 2, "max_length": 24} | changed
    return trainer(
        model=build("llama"),
        args=config(**{key: value for key, value in settings(**arguments).items() if key in known}),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer(),
        **({"ref_model": build("llama", seed=1)} if kind == "KTO" else {}),
    )
