"""Models of BART's family, whose loss compares the logits of token i with label i: the caller shifts the labels."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ringattn.hf import positions
from ringattn.hf.inputs import IGNORED


def is_unshifted(model: PreTrainedModel) -> bool:
    """Does the model's forward compute the mean loss of its labels as they are, by a CrossEntropyLoss?"""
    code = inspect.unwrap(type(model).forward).__code__
    shifts = any(name.startswith("shift") for name in code.co_varnames)
    return "CrossEntropyLoss" in code.co_names and not shifts and any(positions.counting_embeddings(model))


def arguments(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, with the labels named as shifted. Such a model ignores `num_items_in_batch`."""
    rest = {name: value for name, value in given.items() if name != "num_items_in_batch"}
    return rest if rest.get("labels") is None else rest | {"shift_labels": rest["labels"]}


def weighted(loss: Tensor, planned: dict[str, Any]) -> Tensor:
    """This rank's mean loss, weighted such that the mean over ranks is that of all labels.

    planned: this rank's arguments. A rank without targets has loss 0; its mean is not a number.
    """
    targets = (planned["labels"] != IGNORED).sum()
    return torch.where(targets == 0, 0.0, loss * (targets / planned["num_items_in_batch"]))
