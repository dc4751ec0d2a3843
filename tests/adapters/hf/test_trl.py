"""TRL's trainers on 2 and 2 x 2 processes: packed and padded fine-tuning and DPO, as in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import VOCABULARY, build
from adapters.hf.test_trainer import STEPS, as_launched, settings

pytest.importorskip("trl")

LENGTHS = (18, 14, 12, 11, 9, 7, 6, 5)
KEPT = ("loss", "eval_loss", "aux_loss", "num_tokens", "entropy", "mean_token_accuracy", "rewards/margins")


Run = tuple[dict[str, list[float]], dict[str, Tensor]]  # the metrics of every step, and the weights


def test_training() -> None:
    (alone,) = processes.run(1, train, timeout=180)
    for found in [*processes.run(2, train, timeout=180), *processes.run(4, train, timeout=180)]:
        for kind, (expected, trained) in alone.items():
            metrics, weights = found[kind]
            assert metrics.keys() == expected.keys() and len(metrics["loss"]) >= STEPS, kind
            for name, values in expected.items():
                assert metrics[name] == pytest.approx(values, rel=1e-4, abs=1e-5), (kind, name)
            for name, weight in trained.items():
                assert compare.relative(weights[name], weight) <= 1e-5, (kind, name)
            assert any(compare.relative(weight, first(name)) > 1e-3 for name, weight in trained.items()), kind


def first(name: str) -> Tensor:
    """A weight as it was before training."""
    return build("mistral").get_parameter(name).detach()


def train() -> dict[str, Run]:
    as_launched()
    return {"packed": run(fine_tuning(packing=True)), "padded": run(fine_tuning(packing=False)), "dpo": run(dpo())}


def run(trainer: Any) -> Run:
    if dist.get_world_size() > 1:
        ringattn.hf.parallelize(trainer, cp=2)
    trainer.train()
    trainer.evaluate()
    kept = (
        "loss",
        "mean_token_accuracy",
        "entropy",
        "rewards/margins",
        "eval_loss",
        "logps/chosen",
        "aux_loss",
        "num_tokens",
    )
    history = trainer.state.log_history
    metrics = {name: [entry[name] for entry in history if name in entry] for name in kept}
    weights = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    return {name: values for name, values in metrics.items() if values}, weights


def tokenizer() -> Any:
    """One word for each number."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {str(number): number for number in range(3, VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def shared_out(**changed: Any) -> dict[str, Any]:
    """Two rows at a time for all processes together; evaluation takes the mean of batches, so these are single rows."""
    rows = 2 // max(1, dist.get_world_size() // 2)
    batches = {"per_device_train_batch_size": rows, "per_device_eval_batch_size": 1}
    return settings(bf16=False, max_length=24, **batches, **changed)


def fine_tuning(*, packing: bool, model: str = "mistral", **changed: Any) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    texts = [compare.tokens(1, length, seed)[0].tolist() for seed, length in enumerate(LENGTHS)]
    data = Dataset.from_list([{"input_ids": text} for text in texts])
    arguments = SFTConfig(**shared_out(packing=packing, pad_to_multiple_of=None, dataset_num_proc=None))
    made = build(model, **changed)
    return SFTTrainer(made, arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer())


def dpo() -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def words(length: int, seed: int) -> str:
        return " ".join(map(str, compare.tokens(1, length, seed)[0].tolist()))

    pairs = [
        {"prompt": words(4, seed), "chosen": " " + words(length, seed + 20), "rejected": " " + words(6, seed + 40)}
        for seed, length in enumerate(LENGTHS[2:6])
    ]
    arguments = DPOConfig(**shared_out())
    data = Dataset.from_list(pairs)
    models = build("mistral"), build("mistral", seed=1)
    return DPOTrainer(*models, args=arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer())
