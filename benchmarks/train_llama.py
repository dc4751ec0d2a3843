"""Training a Llama of 1B shape on one long sequence: FSDP2 and context parallelism over all GPUs, beside one GPU alone.

torchrun --nproc-per-node 2 benchmarks/train_llama.py

Random weights, random tokens, the same ones in every step, so that the loss has to fall. Both runs share everything but
the number of GPUs: weights, batch, kernel of attention, chunked loss, checkpointed layers, FSDP2's rounding of float32
weights to bfloat16. `--tiny` runs a small model in float32 on CPUs, where the losses agree to rounding.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

import ringattn.hf

# As in the public configuration of Llama 3.2 1B.
LLAMA_1B: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
TINY = LLAMA_1B | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 256,
}
CHUNK = 2048  # so many tokens' logits at a time: 1 GiB of them in float32
WARM_UP = 1


class Run(NamedTuple):
    """The loss of every step, the seconds of every step after the first, and the peak memory in GiB, 0 on a CPU."""

    losses: list[float]
    seconds: list[float]
    memory: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=None, help="default: 65536, or 200 if tiny")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--kernel", default=None, help="of attention, for both runs; default: the one that auto takes")
    parser.add_argument("--tiny", action="store_true", help="a small model, on CPUs")
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.tiny else f"cuda:{os.environ['LOCAL_RANK']}")
    if not arguments.tiny:
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if arguments.tiny else "nccl")
    world = dist.get_world_size()
    tokens = arguments.tokens or (200 if arguments.tiny else 65536)
    # Every rank is also a mesh of its own, on which the first one trains alone.
    own = init_device_mesh(device.type, (world, 1), mesh_dim_names=("ranks", "own"))["own"]
    shared = init_device_mesh(device.type, (world,), mesh_dim_names=("cp",))
    alone = None
    if dist.get_rank() == 0:
        try:
            alone = train(own, device, tokens, arguments)
        except torch.OutOfMemoryError:
            print(f"{tokens:,} tokens do not fit on one GPU")
    gc.collect()  # the first model and its hooks know each other
    dist.barrier()
    together = train(shared, device, tokens, arguments)
    memory: list[Any] = [None] * world
    dist.all_gather_object(memory, together.memory)
    if dist.get_rank() == 0:
        report(tokens, alone, together, memory)
    dist.barrier()
    # Gloo may abort a process that ends in order while a mesh is alive, as FSDP2 keeps them.
    sys.stdout.flush()
    os._exit(0)


def train(mesh: DeviceMesh, device: torch.device, tokens: int, arguments: argparse.Namespace) -> Run:
    """Some steps of AdamW on one sequence that the ranks of the mesh share."""
    model = build(mesh, device, arguments)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if arguments.tiny else 1e-4)
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    losses, seconds = [], []
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(arguments.steps):
        begin = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return Run(losses, seconds[WARM_UP:], memory)


def build(mesh: DeviceMesh, device: torch.device, arguments: argparse.Namespace) -> LlamaForCausalLM:
    """The model, sharded by FSDP2 and parallelized over the mesh; the same weights on every mesh."""
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM(LlamaConfig(**(TINY if arguments.tiny else LLAMA_1B))).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    chunk_loss(model)
    dtype = torch.float32 if arguments.tiny else torch.bfloat16
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return ringattn.hf.parallelize(model, mesh, kernel=arguments.kernel)


def chunk_loss(model: LlamaForCausalLM) -> None:
    """Let the model's loss make a few tokens' logits at a time: in float32 all of them would take 31 GiB."""
    # The head is the embeddings' weight, with which the loss multiplies; what the model calls logits are hidden states.
    model.lm_head = nn.Identity()

    def loss(logits: Tensor, shift_labels: Tensor, num_items_in_batch: Tensor, **others: Any) -> Tensor:
        weight = model.model.embed_tokens.weight
        parts = zip(logits.flatten(0, 1).split(CHUNK), shift_labels.flatten().split(CHUNK), strict=True)
        losses = [checkpoint(summed_loss, hidden, weight, labels, use_reentrant=False) for hidden, labels in parts]
        return torch.stack(losses).sum() / num_items_in_batch

    model.loss_function = loss


def summed_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum")


def report(tokens: int, alone: Run | None, together: Run, memory: list[float]) -> None:
    """A line for every step, and one for each figure; the runs side by side."""
    world = len(memory)
    print(f"{'':>16}{'1 process':>14}{f'{world} processes':>14}{'difference':>14}")
    for step, loss in enumerate(together.losses):
        found = f"{loss:>14.6f}"
        line = f"{'-':>14}{found}" if alone is None else f"{alone.losses[step]:>14.6f}{found}"
        print(f"{f'loss, step {step}':>16}{line}" + ("" if alone is None else f"{loss - alone.losses[step]:>14.1e}"))
    speeds = [0.0 if run is None else tokens / median(run.seconds) for run in (alone, together)]
    print(
        f"{'tokens/s':>16}{speeds[0]:>14,.0f}{speeds[1]:>14,.0f}"
        + (f"{speeds[1] / speeds[0]:>13.2f}x" if alone else "")
    )
    each = ", ".join(f"{used:.1f}" for used in memory)
    print(f"{'peak GiB per GPU':>16}{0.0 if alone is None else alone.memory:>14.1f}{each:>14}")


if __name__ == "__main__":
    main()
