"""Ranks that get different batches are told so, in a model's first calls."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import processes
import ringattn.hf
from adapters.comms import Mute
from adapters.hf import compare
from adapters.hf.models import build
from ringattn.hf import same_batch
from ringattn.hf.hook import Hooks
from ringattn.hf.same_batch import CALLS, FirstCalls
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator, SingleRank

IDS = compare.tokens(2, 40)
EMBEDDED = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS).bool()}


def ask(comm: Communicator, on_last: dict[str, Any], batch: dict[str, Any] = BATCH) -> None:
    """One call, with other arguments on the group's last rank."""
    FirstCalls().check(batch | on_last if comm.rank == comm.size - 1 else batch, comm)


@pytest.mark.parametrize(
    ("on_last", "message"),
    [
        ({"input_ids": IDS.flip(0)}, "input_ids has other values on rank 2 than on rank 0"),
        ({"input_ids": IDS[:, :30]}, r"input_ids is of shape \(2, 40\) on rank 0 and of shape \(2, 30\) on rank 2"),
        ({"labels": None}, r"labels is of shape \(2, 40\) on rank 0 and missing on rank 2"),
        ({"attention_mask": torch.zeros_like(IDS)}, "attention_mask has other values"),
        ({"position_ids": IDS}, r"position_ids is missing on rank 0 and of shape \(2, 40\) on rank 2"),
        ({"input_ids": None, "inputs_embeds": EMBEDDED}, r"input_ids is of shape \(2, 40\) on rank 0 and missing"),
    ],
)
def test_other_batches(on_last: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"got different batches: {message}.*num_replicas=world_size // 3, rank=rank"):
        run(3, lambda comm: ask(comm, on_last), timeout=10)


def test_embeddings() -> None:
    """Ranks compute them themselves, and may do so with other roundings and another dropout."""

    def told(comm: Communicator, first: Tensor, last: Tensor) -> None:
        ask(comm, {"inputs_embeds": last}, {"inputs_embeds": first})

    dropped = (torch.dropout(EMBEDDED, 0.1, train=True) for _ in range(2))
    for pair in ((EMBEDDED, EMBEDDED * 1.01), tuple(dropped), (EMBEDDED * torch.nan,) * 2):
        run(2, lambda comm, pair=pair: told(comm, *pair), timeout=10)
    for other in (EMBEDDED.flip(0), EMBEDDED.flip(1), EMBEDDED[:1]):
        with pytest.raises(ValueError, match="inputs_embeds"):
            run(2, lambda comm, other=other: told(comm, EMBEDDED, other), timeout=10)


class Counting(Mute):
    """Two ranks of which one counts how often it is asked."""

    asked = 0

    def all_gather_object(self, x: object) -> list[Any]:
        self.asked += 1
        assert len(self.said) == self.asked, "a header goes before each comparison"
        return [x, x]


def test_only_the_first_calls_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, comm = FirstCalls(), Counting(0, 2)
    monkeypatch.setattr(same_batch, "capturing", lambda: True)
    calls.check(BATCH, comm)
    assert comm.asked == 0
    monkeypatch.undo()
    for _ in range(CALLS + 2):
        calls.check(BATCH, comm)
    assert comm.asked == CALLS == 3
    alone = Counting(0, 1)
    FirstCalls().check(BATCH, alone)
    FirstCalls().check(BATCH, SingleRank())
    assert alone.asked == 0


def test_processes() -> None:
    assert processes.run(2, told, timeout=120) == ["input_ids has other values on rank 1 than on rank 0"] * 2


def told() -> str:
    """What a model says to a sampler that counts processes; and then it goes on with the same batch for all."""
    model = ringattn.hf.parallelize(build("llama"))
    rank = torch.distributed.get_rank()
    ids = compare.tokens(2, 19, seed=rank)
    with pytest.raises(ValueError, match="different batches") as caught:
        model(input_ids=ids, labels=ids)
    assert model(input_ids=IDS, labels=IDS).loss.isfinite()
    return str(caught.value).split("different batches: ")[1].split(". ")[0]


REFUSED: dict[str, dict[str, Any]] = {
    r"labels must be \(rows, tokens\) = \(2, 40\), got \(2, 30\)": {"labels": IDS[:, :30]},
    "position_ids must be": {"position_ids": torch.arange(3)[None]},
    "one text alone is a row": {"input_ids": IDS[0]},
    "output_attentions": {"output_attentions": True},
}


def test_what_one_rank_is_refused_the_others_are_told() -> None:
    """In the first calls, in which batches are compared, and later; and all can go on."""
    models = [build("llama") for _ in range(2)]

    def rank(comm: Communicator) -> list[str]:
        model, told = ringattn.hf.parallelize(models[comm.rank], comm), list[str]()
        hooks = Hooks.of(model)
        assert hooks is not None
        for left, (message, on_last) in product((CALLS, 0), REFUSED.items()):
            hooks.first_calls.left = left
            with pytest.raises(ValueError, match=message) as caught:
                model(**(BATCH | (on_last if comm.rank else {})))
            told.append(str(caught.value))
        assert model(**BATCH).loss.isfinite()
        return told

    for first, last in zip(*run(2, rank, timeout=10), strict=True):
        assert first.startswith("rank 1 refused its input: ") and last[:40] in first
