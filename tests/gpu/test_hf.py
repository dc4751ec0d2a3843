"""A Hugging Face model over two GPUs: loss and gradients as on one, and batches that differ told apart, over NCCL."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import processes
from gpu.test_processes import needs_two

pytestmark = [
    pytest.mark.gpu,
    needs_two,
    pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed"),
]


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=512, num_hidden_layers=2, **sizes)
    return LlamaForCausalLM(config).to("cuda", torch.bfloat16)


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(512, (rows, length), generator=torch.Generator().manual_seed(seed)).cuda()


def step(model: Any) -> tuple[float, Tensor]:
    """The loss of a row of documents, and the gradient once ranks have averaged theirs."""
    documents = torch.cat([torch.arange(length, device="cuda") for length in (400, 625, 300, 1026)])[None]
    ids = tokens(1, 2351)
    loss = model(input_ids=ids, labels=ids, position_ids=documents, use_cache=False).loss  # One GPU's cache unpacks.
    loss.backward()
    gradient = torch.cat([weight.grad.flatten().float() for weight in model.parameters()])
    dist.all_reduce(gradient, dist.ReduceOp.AVG)
    return loss.item(), gradient


def errors(layout: str) -> tuple[float, float]:
    """How far loss and gradient are from one GPU's."""
    import ringattn.hf

    (alone, exact), (loss, gradient) = step(llama()), step(ringattn.hf.parallelize(llama(), layout=layout))
    return abs(loss - alone), ((gradient - exact).norm() / exact.norm()).item()


def told() -> str:
    """What is said where each rank has a batch of its own."""
    import ringattn.hf

    model = ringattn.hf.parallelize(llama())
    with pytest.raises(ValueError) as error:
        model(input_ids=tokens(1, 64, seed=dist.get_rank()))
    return str(error.value)


@pytest.mark.parametrize("layout", ["zigzag", "balanced"])
def test_a_step_is_that_of_one_gpu(layout: str) -> None:
    for loss, gradient in processes.run(2, errors, layout, timeout=100, backend="nccl"):
        assert loss < 0.01 and gradient < 0.03, "bfloat16 has 3 digits"


def test_other_batches_are_told_apart() -> None:
    for message in processes.run(2, told, timeout=100, backend="nccl"):
        assert "input_ids has other values on rank 1 than on rank 0" in message
