"""`pack_shared_prompts`: completions of the same prompt as one row, in which the prompt is read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ringattn import masks
from ringattn.hf.inputs import IGNORED


@dataclass(frozen=True, eq=False)
class SharedPrompts:
    """One row that stands for a batch of completions, see `pack_shared_prompts`.

    inputs: the arguments of the model. places: (completions, tokens), where in the row each token of a completion is
    predicted, -1 at padding. saved: how many tokens fewer the row has than the batch without its padding.
    """

    inputs: dict[str, Any]
    places: Tensor
    saved: int

    def unpack(self, x: Tensor) -> Tensor:
        """What the row has for each token it predicts, (1, tokens, ...), as (completions, tokens, ...), 0 at padding.

        x: whole, such as `ringattn.hf.unshard` or `token_logprobs` return it. Differentiable.
        """
        found = x[0, self.places.clamp(min=0)]
        real = (self.places >= 0).view(*self.places.shape, *[1] * (found.dim() - 2))
        return found.where(real, torch.zeros((), dtype=x.dtype, device=x.device))


def pack_shared_prompts(batch: Mapping[str, Tensor]) -> SharedPrompts:
    """A batch of GRPO as one row: neighbours with the same prompt share it, and no completion sees another.

    batch: prompt_ids and prompt_mask (completions, prompt tokens), completion_ids and completion_mask (completions,
    tokens), as trainers of TRL have them: prompts padded at the left, completions at the right.

    Returns the arguments of a parallelized model (input_ids, position_ids, labels, an attention_mask of
    `ringattn.masks`) and where each token of a completion is predicted. The last token of a prompt stands before each
    completion again, because each has a first token for it to predict. Logits, loss and gradients are those of the
    completions as rows of their own, the loss being the mean over all tokens of completions.

    Raises ValueError for what is missing, for other shapes, and for prompts without a token.
    """
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    if missing := [name for name in names if name not in batch]:
        raise ValueError(
            f"A batch of prompts and completions has {', '.join(names)}; {', '.join(missing)} are missing."
        )
    ids, mask, answers, real = (batch[name] for name in names)
    if ids.shape != mask.shape or answers.shape != real.shape or len(ids) != len(answers):
        shapes = ", ".join(f"{name} {tuple(batch[name].shape)}" for name in names)
        raise ValueError(f"Masks have the shape of their ids, and each completion has a prompt, got {shapes}.")
    prompts = [tuple(row[row_mask.bool()].tolist()) for row, row_mask in zip(ids, mask, strict=True)]
    if not all(prompts):
        raise ValueError(f"Prompt {prompts.index(())} has no token: one of it predicts the first of its completion.")
    tokens, positions, labels, places = list[int](), list[int](), list[int](), torch.full_like(answers, -1)
    heads, tails = list[int](), list[list[int]]()
    for prompt, group in groupby(range(len(prompts)), key=prompts.__getitem__):
        shared = len(prompt) - 1
        heads.append(shared)
        tails.append([])
        tokens += prompt[:-1]
        positions += range(shared)
        labels += [IGNORED] * shared
        for row in group:
            answer = answers[row][real[row].bool()].tolist()
            places[row, : len(answer)] = torch.arange(len(tokens), len(tokens) + len(answer))
            tails[-1].append(1 + len(answer))
            tokens += [prompt[-1], *answer]
            positions += range(shared, shared + 1 + len(answer))
            labels += [IGNORED, *answer]
    stream = {"input_ids": tokens, "position_ids": positions, "labels": labels}
    inputs: dict[str, Any] = {name: torch.tensor([each], device=ids.device) for name, each in stream.items()}
    inputs["attention_mask"] = masks.shared_prefix(heads, tails)
    return SharedPrompts(inputs, places, int(mask.sum() + real.sum()) - len(tokens))
