"""The logits of some tokens of a text, whole on every rank: those that `logits_to_keep` asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ringattn.hf.batch import ShardedBatch

NAME = "logits_to_keep"


class Kept:
    """Which logits each rank computes, and how the whole is made of them.

    order: (kept,), where each token's logits lie among those that all ranks bring, `most` each; None for all tokens.
    rows: (most,), which of its tokens' logits this rank brings, where the model did not choose them itself.
    """

    # No dataclass, for the reason that `ShardedBatch` is none.
    def __init__(self, order: Tensor | None, rows: Tensor | None) -> None:
        self.order, self.rows = order, rows

    def whole(self, logits: Tensor, batch: ShardedBatch) -> Tensor:
        """(rows, tokens kept, vocabulary), the same on every rank."""
        if self.order is None:
            return batch.unshard(logits)
        mine = logits if self.rows is None else logits.index_select(1, self.rows)
        everyone: Tensor = replace(batch.row, layout="contiguous", cu_seqlens=None).unshard(mine, dim=1)
        return everyone.index_select(1, self.order)


def asked(arguments: dict[str, Any]) -> bool:
    """Does a call ask for the logits of some tokens, and not of all?"""
    given = arguments.get(NAME)
    return given is not None and not (isinstance(given, int) and given == 0)


def chosen(given: int | Tensor, tokens: int, device: torch.device) -> Tensor:
    """The tokens that `logits_to_keep` is for, (kept,): the last of them, or those at some positions."""
    every = torch.arange(tokens, device=device)
    return every[-given:] if isinstance(given, int) else every[given.to(device)]


def plan(planned: dict[str, Any], batch: ShardedBatch, device: torch.device, model_chooses: bool) -> dict[str, Any]:
    """The arguments with this rank's part of `logits_to_keep`; `batch.kept` says what the logits are to become.

    model_chooses: does the model take logits_to_keep?
    """
    if not asked(planned):
        batch.kept = Kept(None, None)
        return planned
    places = [batch.place(position) for position in chosen(planned[NAME], batch.tokens, device).tolist()]
    by_rank: list[list[int]] = [[] for _ in range(batch.row.cp_size)]
    order = []
    for owner, index in places:
        order.append((owner, len(by_rank[owner])))
        by_rank[owner].append(index)
    most = max(map(len, by_rank))
    mine = by_rank[batch.row.cp_rank]
    # All ranks bring the same number, some of them logits that go nowhere.
    rows = torch.tensor(mine + [0] * (most - len(mine)), device=device)
    among_all = torch.tensor([owner * most + place for owner, place in order], device=device)
    batch.kept = Kept(among_all, None if model_chooses else rows)
    return replaced(planned, rows if model_chooses else None)


def replaced(arguments: dict[str, Any], rows: Tensor | None) -> dict[str, Any]:
    """The arguments with other tokens to keep, or without any."""
    rest = {name: value for name, value in arguments.items() if name != NAME}
    return rest if rows is None else rest | {NAME: rows}


def whole(output: Any, batch: ShardedBatch) -> Any:
    """The output, a ModelOutput or a tuple, with the logits that were asked for; without a head, all hidden states."""
    assert batch.kept is not None, "a plan was made"
    if isinstance(output, tuple):
        return (batch.kept.whole(output[0], batch), *output[1:])
    name = "logits" if "logits" in output else "last_hidden_state"
    output[name] = batch.kept.whole(output[name], batch)
    return output
