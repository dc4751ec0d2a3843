"""What a trainer gathers and counts on 2 x 2 processes, of which two and two share their texts: as on two without."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import Trainer, TrainingArguments

import processes
import ringattn.hf
from adapters.hf.models import VOCABULARY, build
from adapters.hf.test_trainer import as_launched, padded, rows, settings

LENGTHS = (9, 4, 7, 12, 3, 5, 8)  # neither of the processes nor of batches a multiple


def test_gathered() -> None:
    """Predictions, metrics and counts of every kind, by name: the same tensors and numbers."""
    plain, _ = processes.run(2, gathered, timeout=180)
    for found in processes.run(4, gathered, timeout=300):
        assert found.keys() == plain.keys()
        for name, expected in plain.items():
            torch.testing.assert_close(
                found[name], expected, rtol=1e-4, atol=1e-4, msg=lambda text, of=name: f"{of}: {text}"
            )


def gathered() -> dict[str, Any]:
    as_launched()
    return predicted() | measured() | measured_in_batches() | streamed() | trained()


def trainer(model: Any = None, **changed: Any) -> Trainer:
    arguments = TrainingArguments(**settings(per_device_eval_batch_size=1, **changed))
    data = rows(LENGTHS)
    made = Trainer(model or build("llama"), arguments, train_dataset=data, eval_dataset=data, data_collator=padded)
    return made if dist.get_world_size() == 2 else ringattn.hf.parallelize(made, cp=2)


def predicted() -> dict[str, Any]:
    """All that a model puts out for each token, logits and hidden states, once for each text, as it does alone."""
    made = trainer(build("llama", output_hidden_states=True))
    logits, hidden_states = made.predict(made.eval_dataset).predictions
    found = {"logits": torch.tensor(logits), "hidden": torch.tensor(hidden_states[-1])}
    assert found["logits"].shape == (len(LENGTHS), max(LENGTHS), VOCABULARY)
    alone = build("llama").eval()
    for row, logits in zip(made.eval_dataset, found["logits"], strict=True):
        expected = alone(input_ids=torch.tensor([row["input_ids"]])).logits[0].detach()
        torch.testing.assert_close(logits[: len(expected)], expected, rtol=1e-4, atol=1e-4)
    labels = made.predict(made.eval_dataset).label_ids
    assert [int((row != -100).sum()) for row in labels] == [length - 1 for length in LENGTHS]
    return found


def measured() -> dict[str, Any]:
    """Metrics that were set after parallelize, of all that a trainer can hand to them; loss where no rank divides."""
    made = trainer(include_for_metrics=["inputs", "loss"])
    made.preprocess_logits_for_metrics = lambda logits, labels: logits.argmax(dim=-1)
    made.compute_metrics = of_rows
    found = {"metrics": kept(made.evaluate())}
    for length in (5, 6):  # another remainder, and a dataset of its own
        found[f"{length} rows"] = kept(made.evaluate(rows(LENGTHS[:length])))
    made.compute_metrics = made.preprocess_logits_for_metrics = None
    return found | {"loss": kept(made.evaluate())}


def of_rows(prediction: Any) -> dict[str, float]:
    right = (prediction.predictions[:, :-1] == prediction.label_ids[:, 1:])[prediction.label_ids[:, 1:] != -100]
    return {
        "rows": len(prediction.predictions),
        "right": right.mean().item(),
        "tokens": int((prediction.inputs > 0).sum()),
        "losses": float(prediction.losses.sum()),
    }


def kept(metrics: dict[str, float]) -> dict[str, float]:
    """Without those that are measured in seconds."""
    return {name: float(value) for name, value in metrics.items() if not name.endswith(("second", "time"))}


def measured_in_batches() -> dict[str, Any]:
    made = trainer(batch_eval_metrics=True, include_for_metrics=["loss"])
    seen: list[tuple[int, float, float]] = []

    def of_batch(prediction: Any, compute_result: bool) -> dict[str, float]:
        real = prediction.label_ids != -100
        seen.append((len(real), float(prediction.predictions[real].sum()), float(prediction.losses.sum())))
        return {
            name: sum(values) for name, values in zip(("rows", "sum", "losses"), zip(*seen, strict=True), strict=True)
        }

    made.compute_metrics = of_batch
    return {"in batches": kept(made.evaluate())}


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(rows([9] * 4))  # of one length, without which accelerate cannot hand them out


def streamed() -> dict[str, Any]:
    """A dataset without a length, which accelerate would have one process read for all."""
    return {"streamed": torch.tensor(trainer().predict(Stream()).predictions)}


def trained() -> dict[str, Any]:
    """What is counted in training, with 4 texts in a step."""
    share = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    found: dict[str, Any] = {}
    kinds = {"all": {"include_num_input_tokens_seen": True}, "real": {"include_num_input_tokens_seen": "non_padding"}}
    kinds["noised"] = {"neftune_noise_alpha": 9.0}
    if version("transformers") >= "5.23":
        kinds["rebalanced"] = {
            "train_sampling_strategy": "batch_rebalance",
            "include_num_input_tokens_seen": "non_padding",
        }
    for kind, changed in kinds.items():
        made = trainer(max_steps=2, dataloader_drop_last=kind == "rebalanced", **share, **changed)
        made.train_dataset = rows([6] * 4 + [9] * 4) if kind == "all" else rows([*LENGTHS, 10])
        made.train()
        *steps, last = made.state.log_history
        found[f"{kind}: losses"] = [step["loss"] for step in steps]
        found[kind] = made.state.num_input_tokens_seen
        found[f"{kind}: samples"] = round(last["train_samples_per_second"] * last["train_runtime"])
        found[f"{kind}: batch"] = made.get_total_train_batch_size(made.args)
    return found


def test_accelerator() -> None:
    """Outside of a trainer's methods too, its accelerator gathers, reduces and counts along dp, until restore."""
    for rank, (found, restored) in enumerate(processes.run(4, accelerated, timeout=120)):
        first = rank % 2  # the ranks along dp are this one and the one after the next
        assert found == ([[first, first + 2]] * 3, [2 * first + 2, first + 1, first + 2], 2, rank // 2)
        assert restored == ([0, 1, 2, 3], 4, rank, True)


def accelerated() -> tuple[Any, ...]:
    as_launched()
    made, rank = trainer(), torch.tensor(dist.get_rank())
    ringattn.hf.parallelize(made, cp=2)  # a second time changes nothing
    accelerator = made.accelerator
    objects: list[Any] = []
    made.compute_metrics = lambda _: {"seen": len(objects.append(gather_object([int(rank)])) or objects)}
    made.evaluate()
    whole = accelerator.gather_for_metrics([int(rank)], use_gather_object=True)
    found = (
        [accelerator.gather(rank).tolist(), whole, objects[0]],
        [int(accelerator.reduce(rank, kind)) for kind in ("sum", "mean", "max")],
        accelerator.num_processes,
        accelerator.process_index,
    )
    ringattn.hf.restore(made)
    return found, (
        accelerator.gather(rank).tolist(),
        accelerator.num_processes,
        accelerator.process_index,
        type(accelerator) is Accelerator and not {"train", "prediction_step"} & vars(made).keys(),
    )
