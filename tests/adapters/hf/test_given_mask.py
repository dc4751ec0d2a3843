"""A mask that a user gives: as `ringattn.masks` makes it, or as a matrix of booleans; and prompts that are shared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import ringattn.hf
from adapters.comms import Mute
from adapters.hf.compare import beside, relative, tokens, worst
from adapters.hf.models import build
from ringattn import ContextParallel, UnsupportedError, masks
from ringattn.hf.inputs import divided
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator, SingleRank

LENGTH = 29
FIRST, SECOND = masks.prefix(LENGTH, 11), masks.causal(LENGTH) | masks.two_way([range(3, 9), range(20, 27)], LENGTH)


def dense(*given: masks.Mask) -> Tensor:
    """(rows, 1, queries, keys) booleans."""
    return torch.tensor([[list(row) for row in mask.dense()] for mask in given]).bool()[:, None]


def ranks(alone: PreTrainedModel, expected: Any, size: int, **inputs: Any) -> float:
    """The largest error of loss, logits and gradients on so many ranks; `alone` has its gradients."""

    def main(comm: Communicator) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        model = ringattn.hf.parallelize(copy.deepcopy(alone), comm)
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        grads = {name: each.grad / size for name, each in model.named_parameters() if each.grad is not None}
        return output.loss.detach(), ringattn.hf.unshard(model, output.logits.detach()), grads

    found = run(size, main)
    grads = {name: sum(each[name] for _, _, each in found) for name in found[0][2]}
    errors = [max(worst(beside(grads, alone)).values())]
    errors += [relative(loss, expected.loss.detach()) for loss, _, _ in found]
    if expected.logits is not None:
        errors += [relative(logits, expected.logits.detach()) for _, logits, _ in found]
    return max(errors)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_exact(name: str) -> None:
    """A given mask goes before the windows of layers, as in transformers; positions that restart say nothing beside."""
    alone, ids = build(name).double().eval(), tokens(2, LENGTH)
    scores = torch.zeros(2, 1, LENGTH, LENGTH, dtype=torch.float64).masked_fill(~dense(FIRST, SECOND), -1e30)
    inputs = {"labels": ids, "position_ids": torch.arange(LENGTH).fmod(17)[None]}
    expected = alone(ids, attention_mask=scores, use_cache=False, **inputs)
    expected.loss.backward()
    for given in (dense(FIRST, SECOND), [FIRST, SECOND]):
        assert ranks(alone, expected, 3, input_ids=ids, attention_mask=given, **inputs) < 1e-5
    alone.zero_grad()
    expected = alone(ids[:1, :2], attention_mask=scores[1:, :, :2, :2], labels=ids[:1, :2], use_cache=False)
    expected.loss.backward()
    small = {"input_ids": ids[:1, :2], "labels": ids[:1, :2], "attention_mask": dense(SECOND)[..., :2, :2]}
    assert ranks(alone, expected, 3, **small) < 1e-5


def test_work_is_shared_evenly() -> None:
    """Layout "balanced" divides rows by what the given masks make of them."""
    mask = masks.prefix(4096, 1024)
    for rows in (1, 2):
        given = {"input_ids": torch.ones(rows, 4096, dtype=torch.int64), "attention_mask": mask}
        batches = [divided(given, ContextParallel(Mute(rank, 4), "balanced")) for rank in range(4)]
        work = mask.row_work()
        shares = [sum(work[position] for position in batch.positions(rank)) for rank, batch in enumerate(batches)]
        assert max(shares) - min(shares) <= 4096 and {batch.local for batch in batches} == {1024}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (dense(FIRST).float(), ValueError, r"\(2 or 1, 1, 29, 29\) booleans.*got \(1, 1, 29, 29\) of torch.float32"),
        (dense(FIRST)[..., :20], ValueError, r"got \(1, 1, 29, 20\)"),
        (dense(FIRST).expand(2, 4, -1, -1), ValueError, r"got \(2, 4, 29, 29\)"),
        (masks.causal(20), ValueError, "of 20 queries and 20 keys, and a row of the batch has 29 tokens"),
        ([FIRST] * 3, ValueError, r"one for each of 2 rows; got a list of 3 \(Mask\)"),
        ([FIRST, None], ValueError, r"got a list of 2 \(Mask, NoneType\)"),
    ],
)
def test_bad_masks(given: Any, error: type[Exception], message: str) -> None:
    model = ringattn.hf.parallelize(build("llama"), SingleRank())
    with pytest.raises(error, match=message):
        model(tokens(2, LENGTH), attention_mask=given)


def test_too_many_tiles_and_what_goes_with_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ringattn.hf.parallelize(build("llama"), SingleRank())
    scattered = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0)) < 0.5
    monkeypatch.setattr("ringattn.hf.given_mask.MAX_TILES", 3000)
    with pytest.raises(UnsupportedError, match=r"attention_mask takes [34],\d\d\d tiles in row 0, more than 3,000"):
        model(tokens(1, 128), attention_mask=scattered)
    with pytest.raises(ValueError, match="cu_seq_lens_q which tokens are sequences: leave one of them out"):
        model(tokens(1, LENGTH), attention_mask=FIRST, cu_seq_lens_q=torch.tensor([0, LENGTH]))
    with pytest.raises(UnsupportedError, match="a ShardedCache is for tokens that are not there yet"):
        model(tokens(1, LENGTH), attention_mask=FIRST, past_key_values=ringattn.hf.ShardedCache(SingleRank()))


def completions() -> dict[str, Tensor]:
    """Six completions of three prompts, the last as the first: padded at the left, and the completions at the right."""
    ids, answers = tokens(6, 9, seed=3), tokens(6, 7, seed=4)
    mask, real = torch.ones_like(ids), torch.ones_like(answers)
    for row, (prompt, length) in enumerate([(0, 7), (0, 3), (0, 5), (1, 1), (1, 6), (0, 4)]):
        ids[row] = ids[prompt]
        mask[row, : 4 * prompt], real[row, length:] = 0, 0
    return {"prompt_ids": ids, "prompt_mask": mask, "completion_ids": answers, "completion_mask": real}


def test_shared_prompts() -> None:
    """Loss, gradients and log-probabilities of each token are those of a row for each completion."""
    alone, batch = build("llama").eval(), completions()  # padding in float64 makes NaN in transformers
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    labels = torch.cat([torch.full_like(batch["prompt_ids"], -100), batch["completion_ids"]], dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    labels = labels.masked_fill(mask == 0, -100)
    expected = alone(ids, attention_mask=mask, labels=labels, position_ids=positions, use_cache=False)
    expected.loss.backward()
    found = ringattn.hf.pack_shared_prompts(batch)
    assert found.saved == 2 * 8 + 4 and found.inputs["input_ids"].numel() == int(mask.sum()) - found.saved
    logits = expected.logits[:, 8:-1].detach()  # those that predict completions
    expected.logits = None
    assert ranks(alone, expected, 3, **found.inputs) < 1e-5

    def main(comm: Communicator) -> None:
        model = ringattn.hf.parallelize(copy.deepcopy(alone), comm)
        output = model(**found.inputs)
        whole = found.unpack(ringattn.hf.unshard(model, output.logits))
        real = batch["completion_mask"].bool()
        assert relative(whole[real], logits[real]) < 1e-5 and not whole[~real].any()
        told = found.unpack(ringattn.hf.token_logprobs(model, output.logits, found.inputs["labels"]))
        one_by_one = logits.log_softmax(dim=-1).gather(2, batch["completion_ids"][..., None])[..., 0]
        assert relative(told[real], one_by_one[real]) < 1e-5 and not told[~real].any()

    run(2, main)


def test_bad_batches_of_prompts() -> None:
    batch = completions()
    for wrong, message in (
        ({"prompt_mask": batch["prompt_mask"][:, 1:]}, r"Masks have the shape.*prompt_mask \(6, 8\)"),
        ({"completion_ids": batch["completion_ids"][1:]}, r"completion_ids \(5, 7\)"),
        ({"prompt_mask": batch["prompt_mask"] * torch.tensor([1, 1, 0, 1, 1, 1])[:, None]}, "Prompt 2 has no token"),
    ):
        with pytest.raises(ValueError, match=message):
            ringattn.hf.pack_shared_prompts(batch | wrong)
    with pytest.raises(ValueError, match="completion_ids, completion_mask are missing"):
        ringattn.hf.pack_shared_prompts({name: batch[name] for name in ("prompt_ids", "prompt_mask")})
