"""The part below a parallelized model's head, where it is called by itself: as in one process, on every rank."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

import processes
import ringattn.hf
from adapters.hf import compare, test_vision
from adapters.hf.hybrid_models import HYBRIDS
from adapters.hf.models import ARCHITECTURES, VOCABULARY, build
from ringattn.hf.cache import argument_of
from ringattn.hf.unsupported import tower

IDS = compare.tokens(2, 21)
HEAD = torch.randn(32, VOCABULARY, generator=torch.Generator().manual_seed(1))


def test_hidden_states_and_gradients() -> None:
    """Whole ones, whatever `parallelize` was told of logits."""
    for found in processes.run(2, below_heads, timeout=240):
        assert len(found) > len(ARCHITECTURES)
        assert not {name: errors for name, errors in found.items() if max(errors.values()) > 1e-5}


def below_heads() -> dict[str, compare.Errors]:
    found = {}
    for name in ARCHITECTURES | HYBRIDS:
        if is_callable(build(name)):
            found[name] = errors(build(name), lambda model: model.base_model(input_ids=IDS, use_cache=False))
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "logits_to_keep": 3}  # the last, to no effect
    found["logits_to_keep"] = errors(build("llama"), lambda model: model.base_model(**batch, use_cache=False))
    found["shards"] = errors(build("llama"), lambda model: model.base_model(input_ids=IDS), logits="shards")
    found["a tuple"] = errors(build("llama"), lambda model: model.base_model(input_ids=IDS, return_dict=False))
    for name in ("llava", "qwen2_5_vl"):
        given = test_vision.prompt(name)
        if is_callable(test_vision.build(name)):
            found[f"{name} with images"] = errors(
                test_vision.build(name), lambda model, given=given: model.base_model(**given, use_cache=False)
            )
    ids = {"input_ids": given["input_ids"].clamp(max=test_vision.IMAGE - 1)}
    found["a text tower"] = errors(test_vision.build("llava"), lambda model: tower(model)(**ids, use_cache=False))
    return found


def is_callable(model: PreTrainedModel) -> bool:
    """In transformers 4 some models name no such part, or theirs takes no **kwargs."""
    parameters = inspect.signature(model.base_model.forward).parameters.values()
    takes_more = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    return model.base_model is not model and (takes_more or version("transformers") >= "5")


def errors(model: PreTrainedModel, call: Callable[..., Any], **how: Any) -> compare.Errors:
    """Of a loss that is computed from all hidden states, as those of TRL that have the head in chunks."""
    alone, weights = copy.deepcopy(model), torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(2))
    ringattn.hf.parallelize(model, **how)
    hidden = []
    for each in (alone, model):
        output = call(each)
        hidden.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)
        ((hidden[-1] @ HEAD).log_softmax(-1) * weights).mean().backward()
    found = {"hidden states": compare.relative(hidden[1].detach(), hidden[0].detach())}
    return found | compare.worst(compare.gradients(model, alone))


def test_a_function_in_place_of_forward() -> None:
    """A trainer has DDP call its loss through the model's forward; the model's own calls within are those to shard."""
    for found in processes.run(2, in_place_of_forward, timeout=120):
        assert max(found.values()) <= 1e-5, found


def in_place_of_forward() -> compare.Errors:
    model = build("llama")
    alone = copy.deepcopy(model)
    ringattn.hf.parallelize(model, logits="whole")
    losses = []
    for wrapper, each in ((alone, alone), (DistributedDataParallel(model), model)):
        own = each.forward
        each.forward = partial(_back_and_loss, each, own)
        losses.append(wrapper(scale := torch.tensor(0.5), text=IDS))
        losses[-1].backward()
        assert scale == 0.5 and each.forward == own
    found = {"loss": compare.relative(losses[1].detach(), losses[0].detach())}
    grads = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return found | compare.worst(compare.beside(grads, alone))  # which DDP has averaged


def _back_and_loss(model: PreTrainedModel, forward: Any, scale: Tensor, *, text: Tensor) -> Tensor:
    model.forward = forward
    hidden = model.base_model(input_ids=text, use_cache=False).last_hidden_state[:, -9:-1]
    logits = model.get_output_embeddings()(hidden)
    logits = logits + scale * model(input_ids=text, use_cache=False).logits[:, -9:-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), text[:, -8:].flatten())


def test_a_model_without_a_head_and_a_cache() -> None:
    """Hidden states of a prompt, whole on every rank, and of the tokens after it."""
    for found in processes.run(2, without_a_head, timeout=120):
        assert max(found) <= 1e-5, found


def without_a_head() -> list[float]:
    found = []
    for below in (False, True):
        model = build("llama").eval()
        expected = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state
        ringattn.hf.parallelize(model if below else model.base_model)
        cache = {argument_of(model.base_model): ringattn.hf.ShardedCache()}
        with torch.no_grad():
            read = [model.base_model(input_ids=some, **cache).last_hidden_state for some in IDS.split([15, 1, 5], 1)]
        found.append(compare.relative(torch.cat(read, dim=1), expected.detach()))
    return found
