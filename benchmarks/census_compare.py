"""One model on two processes, compared with one process: the batches, their results, and how far these are apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import tiny
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import DataCollatorWithFlattening, PreTrainedModel

import ringattn.hf

EXACT = 1e-5
NEW = 12  # tokens, beyond the window, so that layers have to forget
IGNORED = -100
Batch = dict[str, Any]


def ids(rows: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(3, tiny.VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def plain() -> Batch:
    return {"input_ids": ids(2, 29), "labels": ids(2, 29)}


def packed() -> Batch:
    """Three documents in one row, with all that transformers' collator says of them."""
    documents = [{"input_ids": ids(1, length, seed)[0].tolist()} for seed, length in enumerate((9, 16, 5))]
    return dict(DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)(documents))


def padded(side: str) -> Batch:
    """Three rows of which two have padding; no target is padding, or is to be predicted from padding."""
    tokens, mask = ids(3, 23), torch.ones(3, 23, dtype=torch.int64)
    for row, missing in enumerate((0, 4, 13)):
        mask[row, slice(missing) if side == "left" else slice(23 - missing, 23)] = 0
    labels = tokens.masked_fill(mask == 0, IGNORED)
    labels[:, 1:][(mask[:, 1:] == 1) & (mask[:, :-1] == 0)] = IGNORED
    return {"input_ids": tokens.masked_fill(mask == 0, 0), "attention_mask": mask, "labels": labels}


BATCHES: dict[str, Callable[[], Batch]] = {
    "plain": plain,
    "packed": packed,
    "left": lambda: padded("left"),
    "right": lambda: padded("right"),
}
PARTS = (*BATCHES, "tokens")


class OneProcessError(Exception):
    """Transformers alone does not run this."""


def results(model: PreTrainedModel, batch: Batch, **how: Any) -> dict[str, Tensor]:
    """Loss, logits of real tokens, and all gradients, averaged over ranks if the model is parallelized."""
    model.zero_grad(set_to_none=True)
    output = model(**batch, **how)
    output.loss.backward()
    logits, real = output.logits.detach(), batch.get("attention_mask")
    if "ringattn_hooks" in vars(model):
        logits = ringattn.hf.unshard(model, logits)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
    logits = logits.view(*batch["input_ids"].shape, -1)
    grads = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {"loss": output.loss.detach(), "logits": logits if real is None else logits[real.bool()]} | grads


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error. A gradient that is 0 but for rounding counts against a tenth of the largest."""
    least = max(each.norm().item() for name, each in expected.items() if name not in ("loss", "logits")) / 10
    errors = []
    for name, value in found.items():
        other = expected.get(name, torch.zeros_like(value))
        scale = max(other.norm().item(), 0.0 if name in ("loss", "logits") else least) or 1.0
        errors.append((value - other).norm().item() / scale)
    return max(errors) if not any(map(math.isnan, errors)) else float("nan")


def one_process(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise OneProcessError(f"{type(error).__name__}: {error}") from error


def compare(name: str, alone: PreTrainedModel, sharded: PreTrainedModel) -> float:
    """How far the two are apart in one batch; of tokens, how many differ."""
    if name == "tokens":
        return generated(alone, sharded)
    batch, errors, failure = BATCHES[name](), [], OneProcessError()
    # In one process some models mix packed documents, and some do not take them without their kernels.
    for reference in (together, one_by_one) if name == "packed" else (together,):
        try:
            expected = one_process(reference, alone, batch)
        except OneProcessError as refusal:
            failure = refusal
            continue
        error = worst(results(sharded, batch), expected)
        # What rounding alone does to some models is more than to most.
        if error <= EXACT or error <= 3 * worst(rounded(reference, alone, batch), expected):
            return 0.0
        errors.append(error)
    if not errors:
        raise failure
    return min(errors)


def together(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """What one process makes of a batch."""
    return results(model, batch, use_cache=False)


def one_by_one(model: PreTrainedModel, packed: Batch) -> dict[str, Tensor]:
    """What packed documents are to give, from a run for each."""
    borders, targets = packed["cu_seq_lens_q"].tolist(), (packed["labels"] != IGNORED).sum()
    whole: dict[str, Tensor] = {}
    for first, last in itertools.pairwise(borders):
        row = {name: packed[name][:, first:last] for name in ("input_ids", "labels", "position_ids")}
        weight = (row["labels"] != IGNORED).sum() / targets
        for name, value in results(model, row, use_cache=False).items():
            if name == "logits":
                whole[name] = torch.cat([whole[name], value], dim=1) if name in whole else value
            else:
                whole[name] = whole.get(name, 0) + weight * value
    return whole


def rounded(reference: Callable[..., dict[str, Tensor]], model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """What becomes of the results if every weight is rounded another way."""
    generator, weights = torch.Generator().manual_seed(0), [each.detach().clone() for each in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            step = torch.finfo(parameter.dtype).eps * torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + step.to(parameter.dtype))
    found = reference(model, batch)
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.copy_(weight)
    return found


def generated(alone: PreTrainedModel, sharded: PreTrainedModel) -> float:
    """How many tokens differ from those of one process, or from those that it generates without a cache."""
    prompt = {name: value[:2] for name, value in padded("left").items() if name != "labels"}
    how = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    expected = one_process(alone.generate, **prompt, **how)
    found = sharded.generate(**prompt, **how)
    differ = int((found != expected).sum())
    # Moshi's own cache drops keys after a window that its attention does not have.
    return differ and int((found != alone.generate(**prompt, **how, use_cache=False)).sum())
