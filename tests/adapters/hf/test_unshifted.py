"""BART's family on several ranks: positions that are given, and the mean loss of labels that are shifted already."""

from __future__ import annotations

import copy
from importlib.metadata import version

import pytest
import torch
from torch import Tensor

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import build

pytestmark = pytest.mark.skipif(version("transformers") < "5", reason="before, its layers take no **kwargs")
DOCUMENTS = ((4, 9, 8), (13, 8))  # lengths, of each of two packed rows


def test_on_ranks() -> None:
    for found in processes.run(4, on_ranks, timeout=180):
        assert len(found) == 6 and all(error <= 1e-5 for errors in found.values() for error in errors.values()), found


def on_ranks() -> dict[str, compare.Errors]:
    found = {}
    for name in ("bart", "whisper"):
        ids = compare.tokens()
        few = torch.full_like(ids, -100)
        few[1, -3:] = ids[1, :3]  # which leaves ranks without any target
        found[f"{name}, few targets"] = compare.errors(build(name), {"input_ids": ids, "labels": few})
        found[f"{name}, num_items_in_batch"] = ignored_items(name, ids)
        found[f"{name}, documents"] = documents(name, ids)
    return found


def ignored_items(name: str, ids: Tensor) -> compare.Errors:
    """What Trainer passes, and one process makes nothing of."""
    given = {"input_ids": ids, "labels": ids, "num_items_in_batch": torch.tensor(1000)}
    return compare.errors(build(name), given, {"input_ids": ids, "labels": ids})


def documents(name: str, ids: Tensor) -> compare.Errors:
    """Rows of several documents, by positions that restart, beside each document in one process."""
    positions = torch.stack([torch.cat([torch.arange(length) for length in lengths]) for lengths in DOCUMENTS])
    model = build(name)
    alone = copy.deepcopy(model)
    output = ringattn.hf.parallelize(model)(input_ids=ids, labels=ids, position_ids=positions, return_dict=False)
    output[0].backward()
    logits = []
    for row, lengths in zip(ids, DOCUMENTS, strict=True):
        for part in row.split(lengths):
            one = alone(input_ids=part[None], labels=part[None], use_cache=False)
            (one.loss * len(part) / ids.numel()).backward()
            logits.append(one.logits[0].detach())
    whole = ringattn.hf.unshard(model, output[1].detach()).flatten(0, 1)
    return {"logits": compare.relative(whole, torch.cat(logits))} | compare.worst(compare.gradients(model, alone))
