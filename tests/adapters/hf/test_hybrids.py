"""Models whose layers mix tokens outside the attention call: as in one process, in every kind of batch."""

from __future__ import annotations

import copy
from importlib.metadata import version
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.hybrid_models import HYBRIDS
from adapters.hf.models import build
from ringattn.hf.cache import argument_of
from ringattn_comms.communicator import SingleRank

Found = dict[str, compare.Errors]
LENGTHS = (9, 16, 5, 1, 3)  # longer than all windows and chunks, and of three kinds of length


# Its convolutions in transformers 4 do not know of the padding, and let it into the first tokens.
LEAKS = {("lfm2", "left")} if version("transformers") < "5" else set()


@pytest.mark.parametrize("size", [2, 4])
def test_loss_and_gradients(size: int) -> None:
    """Four ranks for one model of each kind of layer."""
    names = list(HYBRIDS) if size == 2 else ["qwen3_next", "mamba2", "lfm2"]
    for found in processes.run(size, batches, names, timeout=300):
        assert len(found) == 4 * len(names) + 1 - len({name for name, _ in LEAKS} & set(names))
        wrong = {name: errors for name, errors in found.items() if max(errors.values()) > 1e-5}
        assert not wrong


def batches(names: list[str]) -> Found:
    ids = compare.tokens()
    found = {"two packed rows": packed(build("lfm2"), two_rows())}
    for name in names:
        found[f"{name} plain"] = compare.errors(build(name), {"input_ids": ids, "labels": ids})
        found[f"{name} packed"] = packed(build(name), one_row())
        for side in ("left", "right"):
            if (name, side) in LEAKS:
                continue
            batch = padded(side)
            found[f"{name} padded at the {side}"] = compare.errors(
                build(name), batch, real=batch["attention_mask"].bool()
            )
    return found


Batch = dict[str, Tensor]


def row_of(texts: list[Tensor]) -> Batch:
    """Texts in one row, as a collator packs them."""
    return {
        "input_ids": torch.cat(texts, dim=1),
        "labels": torch.cat([pad(text[:, 1:], (1, 0), value=-100) for text in texts], dim=1),
        "position_ids": torch.cat([torch.arange(text.shape[1]) for text in texts])[None],
    }


def one_row() -> tuple[Batch, list[Tensor]]:
    texts = [compare.tokens(1, length, seed) for seed, length in enumerate(LENGTHS)]
    borders = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
    return row_of(texts) | {"cu_seq_lens_q": borders}, texts


def two_rows() -> tuple[Batch, list[Tensor]]:
    a, b, c, d, e = one_row()[1]
    rows = [[a, b, c], [c, d, e, b, c]]
    packed = [row_of(row) for row in rows]
    return {name: torch.cat([row[name] for row in packed]) for name in packed[0]}, [*rows[0], *rows[1]]


def padded(side: str) -> Batch:
    """Rows of three lengths; the positions of those that are padded at the left as generate() counts them."""
    ids = compare.tokens(3, 17)
    mask = torch.ones_like(ids)
    for row, missing in enumerate((0, 4, 9)):
        mask[row, slice(missing) if side == "left" else slice(17 - missing, 17)] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, 1:][(mask[:, 1:] == 1) & (mask[:, :-1] == 0)] = -100  # what padding at the left predicts
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if side == "left":
        batch["position_ids"] = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 1)
    return batch


def by_themselves(model: PreTrainedModel, texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The loss of texts and all their logits, one at a time: transformers itself needs kernels for a row of them."""
    items = torch.tensor(sum(text.shape[1] - 1 for text in texts))
    outputs = [model(text, labels=text, num_items_in_batch=items, use_cache=False) for text in texts]
    return torch.stack([output.loss for output in outputs]).sum(), torch.cat([output.logits[0] for output in outputs])


def packed(model: PreTrainedModel, batch_and_texts: tuple[Batch, list[Tensor]]) -> compare.Errors:
    batch, texts = batch_and_texts
    alone = copy.deepcopy(model)
    loss, logits = by_themselves(alone, texts)
    loss.backward()
    output = ringattn.hf.parallelize(model)(**batch)
    output.loss.backward()
    whole = ringattn.hf.unshard(model, output.logits.detach()).flatten(0, 1)
    found = {"loss": compare.relative(output.loss, loss), "logits": compare.relative(whole, logits.detach())}
    return found | compare.worst(compare.gradients(model, alone))


@pytest.mark.parametrize("size", [2])
def test_ways_to_train(size: int) -> None:
    for found in processes.run(size, ways, timeout=300):
        assert found.pop("in bfloat16") <= 2.0
        wrong = {name: error for name, error in found.items() if error > 1e-5}
        assert found and not wrong


def ways() -> dict[str, float]:
    found = {f"two checkpointed batches, {name}": in_flight(name) for name in IN_FLIGHT if name in HYBRIDS}
    found |= {"weights sharded by FSDP2": fsdp(), "a mixer checkpointed by itself": checkpointed_mixer()}
    return found | {"in bfloat16": bfloat16()}


# One whose layers get the batch by keyword, one that is handed it, one that gets it in place of the mask, one by both.
IN_FLIGHT = ("qwen3_next", "jamba", "mamba", "mamba2")


def in_flight(name: str) -> float:
    """Two batches before either's backward pass, whose layers are run again: each finds what it was divided by."""
    model = build(name).train()
    alone = copy.deepcopy(model)
    (row, texts), rows = one_row(), padded("right")
    loss = by_themselves(alone, texts)[0] + alone(**rows, use_cache=False).loss
    loss.backward()
    ringattn.hf.parallelize(model).gradient_checkpointing_enable({"use_reentrant": False})
    (model(**row).loss + model(**rows).loss).backward()
    return max(compare.gradients(model, alone).values())


def fsdp() -> float:
    """Checkpointed layers, which go through all that is handed to them in order to cast it."""
    model = build("jamba" if "jamba" in HYBRIDS else "lfm2").train()
    alone, (row, texts) = copy.deepcopy(model), one_row()
    by_themselves(alone, texts)[0].backward()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    ringattn.hf.parallelize(model, mesh).gradient_checkpointing_enable({"use_reentrant": False})
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.float32))
    model(**row).loss.backward()
    found = {name: each.grad.full_tensor() for name, each in model.named_parameters() if each.grad is not None}
    dist.barrier()
    return max(compare.beside(found, alone).values())


def bfloat16() -> float:
    """The worst error of a gradient, beside that of plain PyTorch in the same dtype."""
    exact, batch = build("lfm2"), padded("right")
    alone, model = (copy.deepcopy(exact).bfloat16() for _ in range(2))
    ringattn.hf.parallelize(model)
    for each in (exact, alone, model):
        each(**batch, use_cache=False).loss.backward()
    compare.average(model)
    errors = [
        torch.cat(
            [(p.grad.float() - q.grad).flatten() for p, q in zip(each.parameters(), exact.parameters(), strict=True)]
        ).norm()
        for each in (model, alone)
    ]
    return (errors[0] / errors[1]).item()


class Checkpointed(nn.Module):
    """A module that runs again in the backward pass, by itself."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.module, *args, use_reentrant=False, **kwargs)


def checkpointed_mixer() -> float:
    """It has its batch among its arguments, also where its layer loses **kwargs."""
    model = build("jamba" if "jamba" in HYBRIDS else "lfm2").train()
    for layer in model.model.layers:
        for name in {"mamba", "conv"} & set(dict(layer.named_children())):
            setattr(layer, name, Checkpointed(getattr(layer, name)))
    return max(compare.errors(model, padded("right"), real=padded("right")["attention_mask"].bool()).values())


@pytest.mark.skipif(version("transformers") < "5", reason="each model keeps its states in a way of its own")
def test_generate() -> None:
    for found in processes.run(2, generated, timeout=300):
        wrong = [name for name, same in found.items() if not same]
        assert len(found) == len(HYBRIDS) + 9 and not wrong


def generated() -> dict[str, bool]:
    """Greedy tokens of three rows, two of them padded at the left, and other ways to read and to go on."""
    prompt = {name: value for name, value in padded("left").items() if name in ("input_ids", "attention_mask")}
    found = {name: same(name, prompt) for name in HYBRIDS}
    for name in ("qwen3_next", "mamba2", "falcon_h1", "minimax"):
        found[f"{name}, beams"] = same(name, prompt, max_new_tokens=6, num_beams=2)
        found[f"{name}, in parts"] = in_parts(name)
    found["lfm2, candidates"] = same("lfm2", {"input_ids": compare.tokens(1, 12)}, prompt_lookup_num_tokens=3)
    return found


def same(name: str, prompt: Batch, **how: Any) -> bool:
    """Does a sharded copy generate what the model does?"""
    how = {"max_new_tokens": 24, "min_new_tokens": how.get("max_new_tokens", 24), "do_sample": False} | how
    model = build(name).eval()
    sharded = ringattn.hf.parallelize(copy.deepcopy(model))
    # With transformers' cache for MiniMax new tokens see padding, because it asks a layer without keys for its length.
    alone = how | ({"use_cache": False} if name == "minimax" else {})
    return torch.equal(sharded.generate(**prompt, **how), model.generate(**prompt, **alone))


@torch.no_grad()
def in_parts(name: str) -> bool:
    """A prompt in three parts gives the logits of the whole, also with a cache that is used again."""
    model, ids = build(name).eval(), compare.tokens(2, 17)
    expected = model(ids, use_cache=False).logits[:, -1:]
    sharded, cache = ringattn.hf.parallelize(copy.deepcopy(model)), ringattn.hf.ShardedCache()
    found = []
    for _ in range(2):
        for part in ids.split([8, 6, 3], dim=1):
            logits = sharded(part, **{argument_of(model): cache}).logits[:, -1:]
        found.append(compare.relative(logits, expected))
        cache.reset()
    return max(found) <= 1e-5


@pytest.mark.skipif(version("transformers") < "5", reason="each model keeps its states in a way of its own")
def test_what_a_state_cannot_do() -> None:
    ids = compare.tokens(1, 12)
    model, cache = ringattn.hf.parallelize(build("mamba").eval(), SingleRank()), ringattn.hf.ShardedCache(SingleRank())
    model(ids, **{argument_of(model): cache})
    with pytest.raises(ringattn.UnsupportedError, match=r"MambaMixer got 12 tokens to continue from .* in one call"):
        model(ids, **{argument_of(model): cache})
    with pytest.raises(
        ringattn.UnsupportedError, match="states of this ShardedCache cannot go back from 12 to 10 tokens"
    ):
        cache.crop(-2)
    assert not cache.is_croppable
    with pytest.raises(ringattn.UnsupportedError, match=rf"pass {argument_of(model)}=ringattn\.hf\.ShardedCache"):
        model(ids, **{argument_of(model): DynamicCache(config=model.config)})
    cache.reset()
    with pytest.raises(
        ringattn.UnsupportedError, match="several texts in a row leaves MambaMixer without a single state"
    ):
        model(ids, position_ids=torch.tensor([[*range(7), *range(5)]]), **{argument_of(model): cache})


def test_restore_and_copies() -> None:
    """A copy runs its own mixers, and what is restored is as it was."""
    model = build("qwen3_next").eval()
    batch = padded("left")
    expected = model(**batch, use_cache=False).loss
    copied = copy.deepcopy(ringattn.hf.parallelize(model, SingleRank()))
    for parameter in model.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(copied(**batch).loss, expected)
    ringattn.hf.restore(copied)
    assert all("forward" not in vars(module) and not module._forward_pre_hooks for module in copied.modules())
    torch.testing.assert_close(copied(**batch, use_cache=False).loss, expected)


def test_models_that_are_parallelized_twice() -> None:
    model = build("lfm2")
    for _ in range(2):
        ringattn.hf.parallelize(model, SingleRank())
    ringattn.hf.restore(model)
    assert all("forward" not in vars(module) and not module._forward_pre_hooks for module in model.modules())


def test_layers_that_lose_the_batch() -> None:
    model = ringattn.hf.parallelize(build("mamba2"), SingleRank())
    for layer in model.backbone.layers:
        layer.forward = lambda hidden, layer=layer, **_: layer.mixer(hidden)
    with pytest.raises(ringattn.UnsupportedError, match="Mamba2Mixer mixes tokens of whole sequences, and got no plan"):
        model(compare.tokens())
