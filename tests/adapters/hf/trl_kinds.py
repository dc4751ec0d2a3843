"""TRL's trainers beyond SFT, DPO and reward models: each with tiny models, and a few rows of the data that it takes."""

from __future__ import annotations

import inspect
import queue
import string
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from adapters.hf.models import VOCABULARY, build
from adapters.hf.test_trainer import settings
from adapters.hf.test_trl import tokenizer

Rows = list[dict[str, Any]]
_NUMBERS = range(5, 9)
_PAIRS: Rows = [{"prompt": f"{n} {n + 1}", "chosen": f" {n} {n} 4 5", "rejected": f" {n} 3 4"} for n in _NUMBERS]
_LABELLED: Rows = [{"prompt": f"{n} {n + 1}", "completion": f" {n} {n} 4 5", "label": n % 2 == 0} for n in _NUMBERS]
_REFERRED: Rows = [pair | {"reference": f" {pair['chosen']} 9"} for pair in _PAIRS]
_TALKS: Rows = [
    {"messages": [{"role": "user", "content": f"{n} {n + 1}"}, {"role": "assistant", "content": f"{n} 7 {n} 4"}]}
    for n in _NUMBERS
]
_PROMPTS: Rows = [{"prompt": f"{n} {n + 1} {n + 2}"} for n in _NUMBERS]
_PRIVILEGED: Rows = [row | {"privileged_context": "7 8 9"} for row in _PROMPTS]

_LENGTHS = {"max_length": 24}
_GENERATES = {"max_completion_length": 6}
_GROUPS = _GENERATES | {"num_generations": 2, "beta": 0.0}


@dataclass(frozen=True)
class Kind:
    """A trainer of TRL: where it is, its data, what its configuration gets, and a second model that it takes."""

    module: str
    trainer: str
    data: Rows
    settings: dict[str, Any] = field(default_factory=dict)
    second: str | None = None
    is_rewarded: bool = False

    @property
    def path(self) -> str:
        """Where users import it from."""
        return f"trl.{self.module}.{self.trainer}".replace("trl.trainer.", "trl.")


KINDS = {
    "CPO": Kind("experimental.cpo", "CPOTrainer", _PAIRS, _LENGTHS),
    "SimPO": Kind("experimental.cpo", "CPOTrainer", _PAIRS, _LENGTHS | {"loss_type": "simpo", "cpo_alpha": 0.0}),
    "ORPO": Kind("experimental.orpo", "ORPOTrainer", _PAIRS, _LENGTHS),
    "KTO": Kind("trainer", "KTOTrainer", _LABELLED, _LENGTHS, "ref_model"),
    "TPO": Kind("experimental.tpo", "TPOTrainer", _REFERRED, _LENGTHS),
    "BEMA": Kind("experimental.bema_for_ref_model", "DPOTrainer", _PAIRS, _LENGTHS, "ref_model"),
    "GKD": Kind("experimental.gkd", "GKDTrainer", _TALKS, _LENGTHS | {"lmbda": 0.0}, "teacher_model"),
    "GOLD": Kind("experimental.gold", "GOLDTrainer", _TALKS, _LENGTHS | _GENERATES | {"lmbda": 0.0}, "teacher_model"),
    "GOLD online": Kind(
        "experimental.gold", "GOLDTrainer", _TALKS, _LENGTHS | _GENERATES | {"lmbda": 1.0}, "teacher_model"
    ),
    "IWOPD": Kind("experimental.iw_opd", "IWOPDTrainer", _TALKS, _LENGTHS | _GENERATES, "teacher_model"),
    "Distillation": Kind("trainer", "DistillationTrainer", _PROMPTS, _GENERATES, "teacher_model"),
    "from a server": Kind(
        "experimental.server_distillation",
        "ServerDistillationTrainer",
        _PROMPTS,
        _GENERATES | {"teacher_model_server_url": "http://127.0.0.1:9", "beta": 0.0, "loss_top_k": 5},
    ),
    "SDFT": Kind(
        "experimental.sdft", "SDFTTrainer", _PRIVILEGED, _GENERATES | {"num_generations": 1, "distillation_topk": 5}
    ),
    "SDPO": Kind("experimental.sdpo", "SDPOTrainer", _PROMPTS, _GROUPS, is_rewarded=True),
    "A2PO": Kind("experimental.a2po", "A2POTrainer", _PROMPTS, _GENERATES, is_rewarded=True),
    "GMPO": Kind("experimental.gmpo", "GMPOTrainer", _PROMPTS, _GROUPS, is_rewarded=True),
    "OnlineDPO": Kind("experimental.online_dpo", "OnlineDPOTrainer", _PROMPTS, {"max_new_tokens": 6}, is_rewarded=True),
}
# They take their batches from a queue that another process fills.
QUEUED = {
    "AsyncGRPO": Kind("experimental.async_grpo", "AsyncGRPOTrainer", _PROMPTS, is_rewarded=True),
    "AsyncDistillation": Kind(
        "experimental.async_distillation",
        "AsyncDistillationTrainer",
        _PROMPTS,
        {"model_init_kwargs": {"attn_implementation": "eager"}, "teacher_server_urls": {"a": "http://127.0.0.1:9"}},
    ),
}


def make(kind: Kind) -> Any:
    """The trainer, with a model that generates texts from random states which ranks share."""
    from datasets import Dataset

    trainer, config = _named(kind, "Trainer"), _named(kind, "Config")
    told = letters() if "GOLD" in kind.trainer else tokenizer()
    told.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    model, given = build("llama"), {}
    if kind.second is not None:
        given[kind.second] = build("llama", seed=1)
    folder = saved(model, told)
    for each in (model, *given.values()):
        each.config._name_or_path = folder  # from where some load a tokenizer, or a teacher
    if kind.is_rewarded:
        given["reward_funcs"] = rewards
    known = inspect.signature(config).parameters
    chosen = settings(num_train_epochs=1, bf16=False, **kind.settings)
    arguments = config(**{name: value for name, value in chosen.items() if name in known})
    common = {"args": arguments, "train_dataset": Dataset.from_list(kind.data), "processing_class": told}
    if kind in QUEUED.values():
        with mock.patch("torch.cuda.get_device_name", lambda *_: "cpu"):  # asked for without a GPU too
            return trainer(folder, **common, **given, rollout_worker=_Worker(), weight_transfer=_Worker())
    with _server() if "Server" in kind.trainer else nullcontext():
        return trainer(model=model, **common, **given)


def _named(kind: Kind, what: str) -> Any:
    """The trainer or its configuration. That of BEMA is DPO's."""
    name = kind.trainer.removesuffix("Trainer") + what
    module = import_module(f"trl.{kind.module}")
    return getattr(module, name, None) or getattr(import_module("trl"), name)


def rewards(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(map(int, text.split()))) / 100 for text in completions]


def saved(model: Any, told: Any) -> str:
    """A folder with the model and the tokenizer, the same on every rank."""
    folder = [tempfile.mkdtemp()]
    if dist.get_rank() == 0:
        model.save_pretrained(folder[0])
        told.save_pretrained(folder[0])
    dist.broadcast_object_list(folder)
    return folder[0]


def letters() -> Any:
    """One token for each letter, by their bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", *string.digits, "\u0120", *string.ascii_letters][:VOCABULARY]
    made = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


class _Worker:
    """As much of a worker as a trainer asks for before it trains."""

    rollout_buffer: queue.Queue[Any] = queue.Queue()


class _Client:
    """What a client of vLLM answers, computed by a teacher in this process."""

    def __init__(self, **_: Any) -> None:
        self.teacher = build("llama", seed=1).eval()

    @torch.no_grad()
    def get_sequence_logprobs(
        self, sequences: list[list[int]], prompt_lengths: list[int], top_logprobs: int, temperature: float
    ) -> dict[str, Any]:
        answer: dict[str, Any] = {"logprobs": [], "logprob_token_ids": [], "actual_logprobs": []}
        for text, start in zip(sequences, prompt_lengths, strict=True):
            ids = torch.tensor([text])
            logprobs = (self.teacher(input_ids=ids).logits[0, start - 1 : -1] / temperature).log_softmax(-1)
            values, tokens = logprobs.topk(top_logprobs, dim=-1)
            answer["logprobs"].append(values.tolist())
            answer["logprob_token_ids"].append(tokens.tolist())
            answer["actual_logprobs"].append(logprobs.gather(1, ids[0, start:, None]).tolist())
        return answer


def _server() -> AbstractContextManager[Any]:
    return mock.patch("trl.generation.vllm_client.VLLMClient", _Client)
