"""Heads of every kind and arguments of every token: loss, logits and gradients as in one process, or a refusal."""

from __future__ import annotations

import copy
from importlib.metadata import version
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

import processes
import ringattn.hf
from adapters.hf import compare
from adapters.hf.models import COMMON, VOCABULARY
from adapters.hf.test_trainer import STEPS, as_launched
from adapters.hf.test_trl import shared_out, tokenizer
from ringattn import UnsupportedError
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import SingleRank

SINCE_5 = pytest.mark.skipif(version("transformers") < "5", reason="before, its attention was code of its own")
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "summary_first_dropout": 0.0}
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2 | {"resid_pdrop": 0.0},
    "electra": {"embedding_size": 32},
    "modernbert": {
        "num_key_value_heads": 4,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}
IDS = compare.tokens(3, 21)
KINDS, CLASSES = IDS % 2, torch.tensor([0, 2, 1])
TEXTS, SPANS = {"labels": CLASSES}, {"start_positions": CLASSES, "end_positions": CLASSES + 3}
LABELS = IDS.masked_fill(IDS % 3 == 0, -100)  # as for masked words: some tokens have no target
# Each with its model and its inputs beside the ids; the number of classes is 3, or else stated.
HEADS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "LlamaForSequenceClassification", TEXTS),
    ("llama", "LlamaForSequenceClassification", {"labels": CLASSES.float(), "num_labels": 1}),
    ("llama", "LlamaForTokenClassification", {"labels": LABELS.where(LABELS < 0, LABELS % 3)}),
    ("llama", "LlamaForQuestionAnswering", SPANS | {"num_labels": 2}),
]
IN_5: list[tuple[str, str, dict[str, Any]]] = [
    ("gpt2", "GPT2LMHeadModel", {"labels": IDS, "token_type_ids": KINDS}),
    ("gpt2", "GPT2ForSequenceClassification", TEXTS),
    ("bert", "BertLMHeadModel", {"labels": IDS, "token_type_ids": KINDS, "is_decoder": True}),
    ("bert", "BertForMaskedLM", {"labels": LABELS, "token_type_ids": KINDS}),
    ("bert", "BertForPreTraining", {"labels": LABELS, "next_sentence_label": CLASSES % 2}),
    ("bert", "BertForSequenceClassification", TEXTS),
    ("bert", "BertForQuestionAnswering", SPANS | {"num_labels": 2}),
    ("bert", "BertForMultipleChoice", {"labels": CLASSES[:1]}),
    ("electra", "ElectraForPreTraining", {"labels": KINDS}),
    ("modernbert", "ModernBertForSequenceClassification", TEXTS),
    ("modernbert", "ModernBertForMaskedLM", {"labels": LABELS}),
]


def build(name: str, head: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **({**COMMON, "num_labels": 3} | CALM | SETTINGS.get(name, {}) | settings))
    config._attn_implementation = "eager"
    model: PreTrainedModel = getattr(transformers, head)(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    return model


def test_heads() -> None:
    for found in processes.run(2, heads, timeout=240):
        wrong = {name: errors for name, errors in found.items() if max(errors.values()) > 2e-5}
        assert len(found) >= 5 and not wrong


def heads() -> dict[str, compare.Errors]:
    found = {f"{head} of {sorted(given)}": of_head(name, head, dict(given)) for name, head, given in heads_here()}
    more = {"padded": padded(), "pooled": pooled(), "a tuple": {"logits": as_tuple()}}
    return found | more | {"of a subclass": of_a_subclass()}


def heads_here() -> list[tuple[str, str, dict[str, Any]]]:
    return HEADS if version("transformers") < "5" else [*HEADS, *IN_5]


def of_head(name: str, head: str, given: dict[str, Any], **inputs: Any) -> compare.Errors:
    settings = {each: given.pop(each) for each in ("num_labels", "is_decoder") if each in given}
    model = build(name, head, **settings)
    ids = IDS[None] if head.endswith("MultipleChoice") else IDS
    return errors(model, {"input_ids": ids, **given, **inputs})


def errors(model: PreTrainedModel, inputs: dict[str, Any]) -> compare.Errors:
    """What differs on these ranks from one process: loss, logits that are whole on every rank, every gradient."""
    alone, sharded = copy.deepcopy(model), ringattn.hf.parallelize(model)
    expected, output = alone(**inputs), sharded(**inputs)
    for each in (expected, output):
        each.loss.backward()
    found = {"loss": compare.relative(output.loss, expected.loss)}
    for name in (name for name in expected if name.endswith("logits")):
        whole, given = expected[name].detach(), output[name].detach()
        given = given if given.shape == whole.shape else ringattn.hf.unshard(sharded, given)
        found[name] = compare.relative(given, whole)
    return found | compare.worst(compare.gradients(sharded, alone))


def padded() -> compare.Errors:
    """A text's class is read off its last real token, wherever the padding is."""
    found = compare.Errors()
    for side in ("left", "right"):
        mask = torch.ones_like(IDS)
        mask[1, slice(8) if side == "left" else slice(13, 21)] = 0
        for head, given in (("SequenceClassification", TEXTS), ("TokenClassification", {"labels": LABELS % 3})):
            inputs = {"input_ids": IDS * mask, "attention_mask": mask} | given
            if head == "TokenClassification":
                inputs["labels"] = inputs["labels"].masked_fill((LABELS < 0) | (mask == 0), -100)
            model = build("llama", f"LlamaFor{head}")
            told = errors(model, inputs)
            found |= {f"{side} {head} {name}": error for name, error in told.items() if mask_free(head, name)}
    return found


def mask_free(head: str, name: str) -> bool:
    """Logits of padding differ between transformers' own attentions."""
    return head == "SequenceClassification" or "logits" not in name


def pooled() -> compare.Errors:
    """One vector of a text, on every rank, from a model without a head."""
    if version("transformers") < "5":
        return {"none": 0.0}
    model = build("bert", "BertModel")
    alone, sharded = copy.deepcopy(model), ringattn.hf.parallelize(model)
    outputs = [each(IDS, token_type_ids=KINDS) for each in (sharded, alone)]
    for each in outputs:
        each.pooler_output.square().sum().backward()
    hidden = ringattn.hf.unshard(sharded, outputs[0].last_hidden_state)
    return {
        "pooler_output": compare.relative(*(each.pooler_output for each in outputs)),
        "last_hidden_state": compare.relative(hidden, outputs[1].last_hidden_state),
    } | compare.worst(compare.gradients(sharded, alone))


class Value(transformers.LlamaForCausalLM):
    """A head of the user's, on a class whose head runs on shards."""

    def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits[:, -1]
        output.loss = None if labels is None else torch.nn.functional.cross_entropy(output.logits, labels)
        return output


def of_a_subclass() -> compare.Errors:
    torch.manual_seed(0)
    model = Value(AutoConfig.for_model("llama", **(COMMON | {"initializer_range": 0.3}))).eval()
    return errors(model, {"input_ids": IDS, "labels": CLASSES})


def as_tuple() -> float:
    model = build("llama", "LlamaForSequenceClassification")
    expected = model(IDS).logits
    return compare.relative(ringattn.hf.parallelize(model)(IDS, return_dict=False)[0], expected)


def test_restore() -> None:
    model = build("llama", "LlamaForSequenceClassification")
    expected = model(IDS).logits
    torch.testing.assert_close(ringattn.hf.parallelize(model, SingleRank())(IDS).logits, expected)
    ringattn.hf.restore(model)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    torch.testing.assert_close(model(IDS).logits, expected)


@SINCE_5
@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("clip_text_model", {}, "CLIPTextModel takes one token of the sequence by its place"),
        (
            "albert",
            {"embedding_size": 32},
            "its Linear pools tokens that the model has chosen.*add_pooling_layer=False",
        ),
        ("vit", {"image_size": 32, "patch_size": 8}, "takes neither input_ids nor inputs_embeds"),
    ],
)
def test_what_is_read_off_a_shard_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(name, **(COMMON | settings)))
    with pytest.raises(UnsupportedError, match=f"cannot run on a sharded sequence: .*{message}"):
        ringattn.hf.parallelize(model, SingleRank())


def test_settings_that_mean_nothing() -> None:
    with pytest.raises(ValueError, match=r"logits='whole' is for models with logits, and LlamaModel has none: the hid"):
        ringattn.hf.parallelize(build("llama", "LlamaModel"), SingleRank(), logits="whole")
    model = ringattn.hf.parallelize(build("llama", "LlamaForCausalLM", output_attentions=True), SingleRank())
    with pytest.raises(UnsupportedError, match="output_attentions=True: the weights are never formed"):
        model(IDS)
    assert model(IDS, output_attentions=False).logits.shape == (*IDS.shape, VOCABULARY)


@pytest.mark.parametrize("shape", [(21,), (2, 3, 21), (3, 1, 21, 21)])
def test_arguments_that_cannot_be_sharded(shape: tuple[int, ...]) -> None:
    model = ringattn.hf.parallelize(build("llama", "LlamaForCausalLM"), SingleRank())
    with pytest.raises(UnsupportedError, match=r"got extra of shape \(.*\(rows, tokens, ...\) = \(3, 21, ...\)"):
        model(IDS, extra=torch.zeros(shape))


def test_arguments_that_every_rank_needs_whole() -> None:
    seen: dict[str, Any] = {}
    model = ringattn.hf.parallelize(build("llama", "LlamaForCausalLM"), SingleRank())
    model.model.layers[0].self_attn.register_forward_pre_hook(lambda _, __, kw: seen.update(kw), with_kwargs=True)
    given: dict[str, Any] = {
        "of_rows": torch.zeros(3),
        "of_heads": torch.zeros(2, 4),
        "of_tokens": [torch.rand(3, 21, 2)],
    }
    model(IDS, **given)
    assert all(torch.equal(seen[name], given[name]) for name in ("of_rows", "of_heads"))
    order = torch.tensor(seen["ringattn_batch"].positions(0))
    assert torch.equal(seen["of_tokens"][0], given["of_tokens"][0][:, order])


def test_torch_func_through_a_model() -> None:
    alone = build("llama", "LlamaForCausalLM")

    def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor]) -> Tensor:
            given = {"input_ids": IDS, "labels": IDS, "use_cache": False}
            found: Tensor = torch.func.functional_call(model, parameters, (), given).loss
            return found

        return torch.func.grad(loss)({name: each.detach() for name, each in model.named_parameters()})

    expected = gradients(alone)
    shares = run(2, lambda comm: gradients(ringattn.hf.parallelize(copy.deepcopy(alone), comm)))
    for name, grad in expected.items():
        assert compare.relative((shares[0][name] + shares[1][name]) / 2, grad) < 2e-5


def test_a_reward_model() -> None:
    """TRL's RewardTrainer on 2 x 2 processes takes the steps that it takes on one."""
    pytest.importorskip("trl")
    (alone,) = processes.run(1, reward, timeout=180)
    losses, weights = alone
    assert len(losses) >= STEPS and max(losses) - min(losses) > 1e-3
    for found, trained in processes.run(4, reward, timeout=240):
        assert found == pytest.approx(losses, rel=1e-4)
        assert max(compare.relative(trained[name], weight) for name, weight in weights.items()) < 1e-4


def reward() -> tuple[list[float], dict[str, Tensor]]:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    as_launched()

    def words(length: int, seed: int) -> str:
        return " ".join(map(str, compare.tokens(1, length, seed)[0].tolist()))

    pairs = [{"chosen": words(5 + seed, seed), "rejected": words(12 - seed, seed + 20)} for seed in range(6)]
    model = build("llama", "LlamaForSequenceClassification", num_labels=1)
    arguments = RewardConfig(**shared_out())
    trainer = RewardTrainer(model, arguments, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer())
    if dist.get_world_size() > 1:
        ringattn.hf.parallelize(trainer, cp=2)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
