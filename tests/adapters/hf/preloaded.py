"""What ranks with models of transformers import, for the server that they are forked from."""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from importlib import import_module

from transformers import AutoConfig, AutoModelForCausalLM

# Some of these modules ask whether there is a GPU; answered by CUDA, no process that is forked later could use one.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

# Libraries that load their parts when a name is first asked for, and those names.
LAZY = {
    "pytest": (),
    "ringattn.hf": (),
    "transformers": ("Trainer", "TrainingArguments"),
    "datasets": ("Dataset",),
    "peft": ("LoraConfig",),
    "trl": ("SFTTrainer", "DPOTrainer", "RewardTrainer", "GRPOTrainer", "RLOOTrainer"),
}
_EXPERIMENTAL = ("a2po", "cpo", "gkd", "gmpo", "gold", "iw_opd", "online_dpo", "orpo", "sdft", "sdpo", "tpo")
LAZY |= {f"trl.experimental.{name}": () for name in _EXPERIMENTAL}
for library, names in LAZY.items():
    with suppress(ImportError):  # not every environment has all of them
        module = import_module(library)
        for name in names:
            getattr(module, name)

models = import_module("adapters.hf.models")
for name in models.ARCHITECTURES | models.HYBRIDS:
    AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model(name))]

# A collection of garbage in a rank would go through all of this, and copy every page of memory that it is on.
gc.freeze()
