"""TRL's online trainers on 2 x 2 processes, of which two and two share their texts: groups, rewards and weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import build
from adapters.hf.test_trainer import as_launched, settings
from adapters.hf.test_trl import tokenizer

pytest.importorskip("trl")
KEPT = ("reward", "reward_std", "frac_reward_zero_std", "num_tokens", "completions/mean_length", "entropy", "loss")
Run = tuple[dict[str, list[float]], dict[str, Tensor], list[Any]]


def test_rollouts() -> None:
    """As on two processes that share nothing: the same completions, statistics of rewards, and weights."""
    plain, _ = processes.run(2, rollouts, timeout=240)
    for found in processes.run(4, rollouts, timeout=400):
        for kind, (metrics, weights, completions) in plain.items():
            assert found[kind][2] == completions, kind
            for name, values in metrics.items():
                assert found[kind][0][name] == pytest.approx(values, rel=1e-3, abs=1e-5), (kind, name)
            assert min(metrics["reward_std"]) > 0
            for name, weight in weights.items():
                assert compare.relative(found[kind][1][name], weight) <= 1e-4, (kind, name)
            assert any(compare.relative(weight, first(name)) > 1e-3 for name, weight in weights.items())


def first(name: str) -> Tensor:
    """A weight as it was before training."""
    return build("llama").get_parameter(name).detach()


def rollouts() -> dict[str, Run]:
    as_launched()
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    # A group of two is spread over both places along dp, or lies within one; rewards are scaled over all groups.
    apart, within = {"per_device_train_batch_size": 1}, {"per_device_train_batch_size": 2}
    return {
        "grpo, groups over processes": run(GRPOTrainer, GRPOConfig, **apart),
        "grpo, scaled by batch": run(GRPOTrainer, GRPOConfig, scale_rewards="batch", **within),
        "rloo": run(RLOOTrainer, RLOOConfig, **within),
    }


def run(kind: Any, config: Any, **changed: Any) -> Run:
    shares = dist.get_world_size() == 4
    trainer = online(kind, config, **changed)
    if shares:
        ringattn.hf.parallelize(trainer, cp=2)
    torch.manual_seed(dist.get_rank() // 2 if shares else dist.get_rank())
    trainer.train()
    history = trainer.state.log_history
    metrics = {name: [float(entry[name]) for entry in history if name in entry] for name in KEPT}
    weights = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    return metrics, weights, list(trainer._logs["completion"])[-4:]


def online(kind: Any, config: Any, **changed: Any) -> Any:
    from datasets import Dataset

    unused = {"per_device_eval_batch_size", "per_device_train_batch_size", "num_train_epochs"}
    arguments = config(
        **{name: value for name, value in settings().items() if name not in unused},
        **{"num_generations": 2, "beta": 0.0, "max_completion_length": 6, "max_steps": 2, "bf16": False} | changed,
    )
    return kind(
        build("llama"),
        reward_funcs=lambda completions, **_: [float(sum(map(int, text.split()))) / 100 for text in completions],
        args=arguments,
        processing_class=tokenizer(),
        train_dataset=Dataset.from_dict({"prompt": [f"{n} {n + 1} {n + 2}" for n in range(3, 35)]}),
    )


def test_groups_that_do_not_fill_a_batch() -> None:
    for message in processes.run(2, refused, timeout=120):
        assert "per_device_train_batch_size=1 x 2 (steps_per_generation) x 1 = 2 completions at a time" in message
        assert "has to be a multiple of 2, or num_generations one of 2." in message


def refused() -> str:
    as_launched()
    from trl import GRPOConfig, GRPOTrainer

    trainer = online(GRPOTrainer, GRPOConfig, per_device_train_batch_size=1, num_generations=4)
    with pytest.raises(ValueError) as raised:
        ringattn.hf.parallelize(trainer, cp=2)
    return str(raised.value)
