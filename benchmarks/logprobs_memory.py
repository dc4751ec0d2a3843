"""Peak memory of a loss from log-probabilities of targets: by PyTorch from whole logits, and by `token_logprobs`.

    torchrun --standalone --nproc-per-node 2 benchmarks/logprobs_memory.py {plain,whole,shards}

One process holds, for 4,096 tokens of a vocabulary of 32,000, 500 MiB of whole logits in float32. Prints how many MiB
the resident memory of rank 0 grows in a forward and a backward pass of a model that is small beside them.
"""

from __future__ import annotations

import resource
import sys

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

import ringattn.hf

VOCABULARY, TOKENS = 32_000, 4096


def main(how: str) -> None:
    """One step, from logits that `parallelize` leaves whole or in shards."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=VOCABULARY, num_hidden_layers=1, **size)
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.randint(VOCABULARY, (1, TOKENS))
    ringattn.hf.parallelize(model, logits="shards" if how == "shards" else "whole")
    model(input_ids=ids[:, :64]).logits.sum().backward()
    before = peak()
    logits = model(input_ids=ids).logits
    if how == "plain":
        found = logits[:, :-1].log_softmax(dim=-1).gather(2, ids[:, 1:, None])
    else:
        found = ringattn.hf.token_logprobs(model, logits, ids)
    (-found.mean()).backward()
    if dist.get_rank() == 0:
        print(f"{how}: {peak() - before:.0f} MiB")
    dist.destroy_process_group()


def peak() -> float:
    """The most resident memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main(sys.argv[1])
