"""Batches that are packed, padded, weighted or short: as in one process, whatever the layout and the route."""

from __future__ import annotations

import copy
from inspect import signature
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening

import processes
import ringattn.hf
from adapters.comms import Mute
from adapters.hf import compare
from adapters.hf.models import ARCHITECTURES, build
from ringattn.hf.batch import divide

Found = dict[str, compare.Errors]


def check(function: Any, size: int) -> None:
    for found in processes.run(size, function, timeout=180):
        wrong = {name: errors for name, errors in found.items() if max(errors.values()) > 1e-5}
        assert found and not wrong


@pytest.mark.parametrize("size", [2, 3])
def test_layouts_and_routes(size: int) -> None:
    check(layouts_and_routes, size)


def layouts_and_routes() -> Found:
    ids, packed = compare.tokens(2, 23), compare.tokens(1, 46)
    rows = {"input_ids": ids, "labels": ids}
    documents = torch.cat([torch.arange(length) for length in (9, 16, 5, 3, 13)])[None]
    row = {"input_ids": packed, "labels": packed, "position_ids": documents}
    return {
        f"{layout} {route}": compare.errors(
            *(build("mistral"), row if layout == "balanced" else rows), layout=layout, route=route, head_groups=groups
        )
        for (layout, route), groups in zip(
            product(["contiguous", "zigzag", "striped", "balanced"], ["ring", "waves", "gather"]),
            [1, 2, 1] * 4,
            strict=True,
        )
    }


def test_documents_are_dealt_and_one_alone_is_divided_as_in_zigzag() -> None:
    assert signature(ringattn.hf.parallelize).parameters["layout"].default == "balanced"
    for rank in range(4):
        cp, zigzag = (ringattn.ContextParallel(Mute(rank, 4), layout) for layout in ("balanced", "zigzag"))
        documents = divide(cp, [tuple(range(0, 97, 12))], 96, 96).row.division(96).spans(rank)
        assert [len(span.positions) for span in documents] == [12, 12], "two whole ones"
        for borders in ([(0, 96)], [(0, 96), (0, 48, 96)]):  # a batch of several rows is divided alike
            dealt, wanted = (divide(each, borders, 96, 96).row.division(96).positions(rank) for each in (cp, zigzag))
            assert dealt == wanted


@pytest.mark.parametrize("size", [2, 3])
def test_packed(size: int) -> None:
    check(packed, size)


def packed() -> Found:
    """Documents packed by transformers' own collator, on models with and without a window."""
    found = {}
    for kind, lengths in {"long": [9, 16, 5], "short": [1, 3, 1, 1, 2, 1, 1, 4, 1], "one": [11]}.items():
        documents = [{"input_ids": compare.tokens(1, length, seed)[0].tolist()} for seed, length in enumerate(lengths)]
        batch = dict(DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)(documents))
        told = {name: batch[name] for name in ("input_ids", "labels", "position_ids")}
        for name in ("mistral", "gemma2", "deepseek_v3"):
            found[f"{kind} {name} by cu_seq_lens"] = compare.errors(build(name), batch, told)
            found[f"{kind} {name} by position_ids"] = compare.errors(build(name), told)
        lengths_alone = {name: value for name, value in batch.items() if name not in ("max_length_q", "seq_idx")}
        for layout in ("striped", "zigzag"):
            found[f"{kind} {layout}"] = compare.errors(build("llama"), lengths_alone, told, layout=layout)
    ids = compare.tokens(2, 12)
    positions = torch.tensor([[*range(7), *range(5)], [*range(2), *range(10)]])
    rows = {"input_ids": ids, "labels": ids, "position_ids": positions}
    found["two rows"] = compare.errors(build("gemma2"), rows)
    # What a collator that pads to a multiple adds after the last document is a document of its own.
    padded = torch.cat([batch["input_ids"], torch.zeros(1, 3, dtype=torch.int64)], dim=1)
    labels = torch.nn.functional.pad(batch["labels"], (0, 3), value=-100)
    inputs = {"input_ids": padded, "labels": labels, "cu_seq_lens_q": batch["cu_seq_lens_q"]}
    alone = {"input_ids": batch["input_ids"], "labels": batch["labels"]}
    found["padding after the last"] = _without_logits(compare.errors(build("llama"), inputs, _padded(alone)))
    return found


def test_jumps() -> None:
    check(jumps, 2)


def jumps() -> Found:
    """Positions that jump or restart beside a mask stay one text, as in transformers; without a mask they part it."""
    ids, found = compare.tokens(2, 12), {}
    skipped = torch.cat([torch.arange(5), torch.arange(60, 67)]).expand(2, -1)  # as PoSE trains for longer texts
    ones, mask = torch.ones_like(ids), (torch.arange(12) < torch.tensor([[12], [9]])).long()
    for name in ("llama", "mistral"):
        for kind, told in {"ones": ones, "padding": mask, "none": None}.items():
            real = (ones if told is None else told).bool()
            inputs = {"input_ids": ids, "labels": ids.masked_fill(~real, -100), "position_ids": skipped}
            if told is not None:
                inputs["attention_mask"] = told
            found[f"{name}, mask: {kind}"] = compare.errors(build(name), inputs, real=real)
    restarted = {"position_ids": torch.cat([torch.arange(5), torch.arange(7)])[None], "attention_mask": ones}
    with pytest.warns(UserWarning, match="position_ids restart in a row that has an attention_mask"):
        found["restarts"] = compare.errors(build("llama"), {"input_ids": ids, "labels": ids, **restarted})
    return found


def _padded(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 3)),
        "labels": torch.nn.functional.pad(inputs["labels"], (0, 3), value=-100),
    }


def _without_logits(errors: compare.Errors) -> compare.Errors:
    return {name: error for name, error in errors.items() if name != "logits"}


@pytest.mark.parametrize("size", [2, 3])
def test_padded(size: int) -> None:
    check(padding, size)


def padding() -> Found:
    """Rows of three lengths, padded at either side; positions counted from the first token, or from the padding."""
    found = {}
    ids = compare.tokens(3, 17)
    names = [name for name in ("llama", "mistral", "gemma3_text", "gpt_oss", "opt", "roberta") if name in ARCHITECTURES]
    for side, name in product(("left", "right"), names):
        mask = torch.ones_like(ids)
        for row, missing in enumerate((0, 4, 9)):
            mask[row, slice(missing) if side == "left" else slice(17 - missing, 17)] = 0
        labels = ids.masked_fill(mask == 0, -100)
        # What padding at the left predicts is nobody's business, and differs between transformers' own kernels.
        labels[:, 1:][(mask[:, 1:] == 1) & (mask[:, :-1] == 0)] = -100
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        model = build(name)
        if name == "opt":
            # Its attention is so sharp that in single precision gradients differ by rounding; and its eager softmax is
            # in single precision always, in which it makes NaN of a row of padding in double precision.
            model.double().set_attn_implementation("sdpa")
        found[f"{side} {name}"] = compare.errors(copy.deepcopy(model), inputs, real=mask.bool())
        if side == "left":
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 1)  # as generate() does
            found[f"{side} {name} counted"] = compare.errors(model, inputs, real=mask.bool())
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_arguments(size: int) -> None:
    check(arguments, size)


def arguments() -> Found:
    """Everything that a call can say about its loss and its inputs."""
    ids, found = compare.tokens(2, 13), {}
    few = ids.clone()
    few[:, 3:] = -100  # all targets at the beginning: some ranks have none
    found["few labels"] = compare.errors(build("llama"), {"input_ids": ids, "labels": few})
    for items in (40, torch.tensor(40)):
        inputs = {"input_ids": ids, "labels": ids, "num_items_in_batch": items}
        found[f"num_items_in_batch {type(items).__name__}"] = compare.errors(build("llama"), inputs)
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    told = {"input_ids": ids, "labels": ids}
    found["shift_labels"] = compare.errors(build("llama"), told | {"shift_labels": shifted}, told)
    model = build("llama")
    embedded = {"inputs_embeds": model.get_input_embeddings()(ids).detach(), "labels": ids}
    found["inputs_embeds"] = _existing(compare.errors(model, embedded))
    positions = torch.arange(5, 18)[None]
    found["position_ids"] = compare.errors(build("llama"), told | {"position_ids": positions})
    one = compare.tokens(2, 1)
    found["one token"] = compare.errors(build("llama"), {"input_ids": one, "labels": one, "shift_labels": one})
    two = compare.tokens(1, 2)
    found["two tokens"] = compare.errors(build("mistral"), {"input_ids": two, "labels": two})
    found["a tuple"] = {"loss": _tuple_loss(ids)}
    found["a loss outside the model"] = _loss_outside(ids)
    found["the last logits"] = _last_logits(ids)
    return found


def _existing(errors: compare.Errors) -> compare.Errors:
    return {name: error for name, error in errors.items() if "embed" not in name}


def _loss_outside(ids: Tensor) -> compare.Errors:
    """Every rank computes the same loss, from all logits; the mean of the gradients is that of one process."""
    model = build("llama")
    alone = copy.deepcopy(model)
    ringattn.hf.parallelize(model, logits="whole")
    losses = []
    for each in (model, alone):
        logits = each(ids, use_cache=False).logits[:, :-1]
        losses.append(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=0.1)
        )
        losses[-1].backward()
    return {"loss": compare.relative(*losses)} | compare.worst(compare.gradients(model, alone))


def _last_logits(ids: Tensor) -> compare.Errors:
    """Those of the last token alone, on every rank; their gradient as from all logits."""
    model = build("llama")
    alone = copy.deepcopy(model)
    ringattn.hf.parallelize(model)
    logits = [each(ids, logits_to_keep=1, use_cache=False).logits for each in (model, alone)]
    logits.append(model(ids, logits_to_keep=1, return_dict=False)[0])
    for each in logits[:2]:
        torch.nn.functional.cross_entropy(each[:, 0], ids[:, 0]).backward()
    found = {"logits": compare.relative(*logits[:2]), "a tuple": compare.relative(*logits[2:0:-1])}
    return found | compare.worst(compare.gradients(model, alone))


def _tuple_loss(ids: Tensor) -> float:
    model = build("llama")
    expected = model(ids, labels=ids).loss
    loss, logits, *_ = ringattn.hf.parallelize(model)(ids, labels=ids, return_dict=False)
    assert ringattn.hf.unshard(model, logits).shape == (2, 13, 64)
    return compare.relative(loss, expected)


@pytest.mark.parametrize(
    "given", [{"input_ids": torch.zeros(0, 8, dtype=torch.int64)}, {"inputs_embeds": torch.zeros(0, 8, 64)}]
)
def test_no_rows(given: dict[str, Tensor]) -> None:
    """transformers' own models fail in a reshape then."""
    model = build("llama")
    ringattn.hf.parallelize(model, Mute(0, 2))
    with pytest.raises(ValueError, match=r"has no rows, got \(0, 8.*: skip a batch that is empty on all ranks"):
        model(**given)
