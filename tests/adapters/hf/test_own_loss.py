"""Losses that are made outside the model: from whole logits, or from log-probabilities of targets on shards."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import build
from adapters.hf.test_trainer import as_launched, padded, rows, settings, whole
from ringattn.hf import logprobs

LENGTHS = (7, 12, 3, 18)
Run = tuple[list[float], dict[str, Tensor]]


class FromLogits(Trainer):
    """The mean over texts of the mean over their targets, which no loss of transformers is."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        labels = inputs.pop("labels")
        output = model(**inputs)
        found = self.of_tokens(model, output, labels)
        loss = -(found.sum(1) / (labels[:, 1:] != -100).sum(1)).mean()
        return (loss, output) if return_outputs else loss

    def of_tokens(self, model: nn.Module, output: Any, labels: Tensor) -> Tensor:
        return -nn.functional.cross_entropy(output.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")


class FromShards(FromLogits):
    def of_tokens(self, model: nn.Module, output: Any, labels: Tensor) -> Tensor:
        return ringattn.hf.token_logprobs(model, output.logits, labels)


def test_training() -> None:
    """The losses and weights of one process, with nothing said where whole logits are wanted."""
    (alone,) = processes.run(1, trained, timeout=180)
    for found in processes.run(2, trained, timeout=240):
        for kind, (losses, weights) in alone.items():
            assert found[kind][0] == pytest.approx(losses, rel=1e-4, abs=1e-5), kind
            for name, weight in weights.items():
                assert compare.relative(found[kind][1][name], weight) <= 1e-5, (kind, name)


def trained() -> dict[str, Run]:
    as_launched()
    shards = {"logits": "shards"}
    return {
        "from logits": run(plain(FromLogits)),
        "from shards": run(plain(FromShards), **shards),
        "from log-probabilities of whole logits": run(plain(FromShards)),
        "smoothed": run(plain(Trainer, label_smoothing_factor=0.1)),
    }


def run(trainer: Trainer, **how: Any) -> Run:
    if dist.get_world_size() > 1:
        ringattn.hf.parallelize(trainer, cp=2, **how)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if trainer.eval_dataset is not None:
        losses.append(trainer.evaluate()["eval_loss"])
        predicted = trainer.predict(trainer.eval_dataset)
        losses.append(float(abs(predicted.predictions[predicted.label_ids != -100]).sum()) / 1e4)
    weights = {name: whole(parameter).clone() for name, parameter in trainer.model.named_parameters()}
    first = build("mistral")
    assert any(compare.relative(weights[name], each.detach()) > 1e-3 for name, each in first.named_parameters())
    return losses, weights


def plain(kind: type[Trainer], **changed: Any) -> Trainer:
    arguments = TrainingArguments(**settings(num_train_epochs=1, gradient_accumulation_steps=1, **changed))
    data = rows(LENGTHS)
    return kind(build("mistral"), arguments, train_dataset=data, eval_dataset=data[:2], data_collator=padded)


def test_shards_for_a_loss_from_logits() -> None:
    for message in processes.run(2, asked_for_shards, timeout=120):
        assert "The loss of FromLogits failed with logits='shards'" in message
        assert "say logits='whole'" in message


def asked_for_shards() -> str:
    as_launched()
    trainer = ringattn.hf.parallelize(plain(FromLogits), cp=2, logits="shards")
    with pytest.raises(ringattn.UnsupportedError) as raised:
        trainer.train()
    return str(raised.value)


def test_token_logprobs() -> None:
    """On ranks: whole values on each, and gradients that are averaged, of padded rows, packed ones and one token."""
    for found in processes.run(2, on_ranks, timeout=120):
        assert max(found.values()) <= 1e-5, found


def on_ranks() -> compare.Errors:
    errors = {}
    for kind, ids in {"rows": compare.tokens(3, 21), "one token": compare.tokens(2, 1)}.items():
        labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3, -100)
        weights = torch.rand(ids[:, 1:].shape, generator=torch.Generator().manual_seed(1))
        model = build("llama")
        alone = copy.deepcopy(model)
        ringattn.hf.parallelize(model)
        found = [ringattn.hf.token_logprobs(each, each(input_ids=ids).logits, labels) for each in (model, alone)]
        for values in found:
            ((values * weights).sum() + 0 * sum(each.sum() for each in model.parameters())).backward()
        errors[f"{kind}: values"] = compare.relative(*(values.detach() for values in found))
        if kind == "rows":
            errors |= compare.worst(compare.gradients(model, alone))
    with pytest.raises(ValueError, match=r"and the labels of the whole batch, \(2, 1\), got .* and \(2, 5\)"):
        ringattn.hf.token_logprobs(model, model(input_ids=ids).logits, compare.tokens(2, 5))
    return errors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_of_one_process(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against log_softmax in float64: 1e-10 in float64, else twice the error of PyTorch in the same dtype."""
    monkeypatch.setattr(logprobs, "_CHUNK", 3 * 50)  # several chunks, the last one shorter
    logits = (torch.randn(2, 5, 50, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    labels = torch.tensor([[9, 3, -100, 49, 0], [1, 2, 3, -100, -100]])
    results = []
    for x, function in (
        (logits.double(), plain_logprobs),
        (logits.clone(), plain_logprobs),
        (logits.clone(), lambda x, labels: ringattn.hf.token_logprobs(build("llama"), x, labels)),
    ):
        x.requires_grad_()
        values = function(x, labels)
        (values * torch.arange(1, 9).view(2, 4)).sum().backward()
        assert x.grad is not None
        results.append((values.detach().double(), x.grad.double()))
    for exact, usual, found in zip(*results, strict=True):
        allowed = 1e-10 if dtype == torch.float64 else 2 * (usual - exact).norm()
        assert (found - exact).norm() <= allowed
    assert (results[2][0] == 0).sum() == 3


def plain_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    targets = labels[:, 1:]
    found = logits[:, :-1].log_softmax(-1).gather(2, targets.clamp(min=0)[..., None]).squeeze(2)
    return found.masked_fill(targets == -100, 0.0)
