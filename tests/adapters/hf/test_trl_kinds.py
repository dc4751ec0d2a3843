"""TRL's other trainers on two processes that share their texts: losses, metrics and weights of one, or a refusal."""

from __future__ import annotations

import importlib
import pkgutil
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import build
from adapters.hf.test_trainer import as_launched

trl = pytest.importorskip("trl")
if version("transformers") < "5":
    pytest.skip("some experimental trainers of TRL 1.16 need transformers 5", allow_module_level=True)
from adapters.hf.trl_kinds import KINDS, QUEUED, make  # noqa: E402

PAGE = Path(__file__).parents[3] / "docs/tutorials/packed-sft-with-trl.md"
# Means over all tokens, padding among them, whose logits depend on the attention implementation in one process too.
_OF_PADDING = {"logits/chosen", "logits/rejected", "objective/entropy"}
Run = tuple[list[dict[str, float]], Tensor]  # what was logged, and how far training has moved the weights


def test_trainers_train_as_in_one_process() -> None:
    (alone,) = processes.run(1, train, timeout=240)
    for found in processes.run(2, train, timeout=300):
        assert found.keys() == alone.keys() == KINDS.keys()
        for kind, (logged, moved) in alone.items():
            assert moved.norm() > 1e-3, kind
            assert compare.relative(found[kind][1], moved) <= 5e-4, kind
            assert len(found[kind][0]) == len(logged) > 1, kind
            for entry, expected in zip(found[kind][0], logged, strict=True):
                assert entry == pytest.approx(expected, rel=1e-3, abs=1e-5), kind


def train() -> dict[str, Run]:
    """An epoch with each trainer."""
    as_launched()
    found = {}
    start = torch.cat([weight.detach().flatten() for weight in build("llama").parameters()])
    for name, kind in KINDS.items():
        trainer = make(kind)
        if dist.get_world_size() > 1:
            ringattn.hf.parallelize(trainer, cp=2)
        trainer.train()
        weights = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
        found[name] = [_numbers(entry) for entry in trainer.state.log_history], weights - start
    return found


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    timed = ("runtime", "per_second", "step_time")
    return {name: value for name, value in entry.items() if name not in _OF_PADDING and not name.endswith(timed)}


def test_batches_that_one_process_hands_out() -> None:
    for messages in processes.run(2, refused, timeout=120):
        assert len(messages) == len(QUEUED)
        for kind, message in zip(QUEUED.values(), messages, strict=True):
            assert f"{kind.trainer} trains on completions from a queue" in message
            assert "such as GRPOTrainer, RLOOTrainer or DistillationTrainer" in message


def refused() -> list[str]:
    as_launched()
    messages = []
    for kind in QUEUED.values():
        trainer = make(kind)
        with pytest.raises(ringattn.UnsupportedError) as raised:
            ringattn.hf.parallelize(trainer, cp=2)
        assert "get_train_dataloader" not in vars(trainer)
        messages.append(str(raised.value))
    return messages


def test_the_table_of_trainers() -> None:
    """It has every trainer of this version of TRL, with what the tests above show of it."""
    rows = re.findall(r"^\| `(trl\.\S+Trainer)` \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    told = dict(rows)
    assert len(rows) == len(told) and told.keys() == trainers().keys()
    exact = {kind.path for kind in KINDS.values()} | _ELSEWHERE.keys() | _ALIASES.keys()
    assert {path for path, state in rows if state == "as in one process"} == exact
    assert {path for path, state in rows if state == "refused"} == {kind.path for kind in QUEUED.values()}
    for path, name in _ELSEWHERE.items():
        assert path.rpartition(".")[2] in (Path(__file__).parent / name).read_text(encoding="utf-8")
    for path, stable in _ALIASES.items():
        assert issubclass(trainers()[path], trainers()[stable])


_ELSEWHERE = {
    "trl.SFTTrainer": "test_trl.py",
    "trl.DPOTrainer": "test_trl.py",
    "trl.RewardTrainer": "test_heads.py",
    "trl.GRPOTrainer": "test_rollouts.py",
    "trl.RLOOTrainer": "test_rollouts.py",
}
_ALIASES = {
    "trl.experimental.kto.KTOTrainer": "trl.KTOTrainer",
    "trl.experimental.distillation.DistillationTrainer": "trl.DistillationTrainer",
}


def trainers() -> dict[str, type]:
    """All trainers by where they are imported from."""
    found = {f"trl.{name}": getattr(trl, name) for name in filter(_names_trainer, dir(trl))}
    experimental = importlib.import_module("trl.experimental")
    for module in pkgutil.iter_modules(experimental.__path__, "trl.experimental."):
        if module.ispkg:
            package = importlib.import_module(module.name)
            found |= {f"{module.name}.{name}": getattr(package, name) for name in filter(_names_trainer, dir(package))}
    return found


def _names_trainer(name: str) -> bool:
    return name.endswith("Trainer") and not name.startswith("_")
