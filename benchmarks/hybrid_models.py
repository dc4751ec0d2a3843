"""What a model with linear attention costs on several ranks: one training step on 1, 2, 4 ... of them.

torchrun --standalone --nproc-per-node 4 benchmarks/hybrid_models.py

The layers that mix tokens outside attention run on whole sequences on every rank (`ringattn.hf.hybrid`), all else on
shards. Per rank: the floating-point operations of the forward pass, without those of attention itself, and what it
keeps for the backward pass, both with the part of these layers by itself; and the seconds of a step. On GPUs where
there are any, on CPUs else, where only the counts mean much.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, Qwen3NextConfig, Qwen3NextForCausalLM

import ringattn.hf
from ringattn.hf import hybrid

# Three layers of linear attention for one of attention, as in Qwen3-Next, and the widths of a small model.
SETTINGS: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "num_experts": 0,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}
GIGA, MEBI = 1e9, 2**20


class Cost(NamedTuple):
    """Of one rank and one step: operations and kept bytes, of the mixers and of all; the median seconds."""

    mixer_flops: float
    flops: float
    mixer_bytes: float
    bytes: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    world = dist.get_world_size()
    print_once(f"{arguments.tokens:,} tokens; of each rank:")
    print_once(f"{'':>10}{'forward GFLOP':>20}{'kept MiB':>20}{'seconds':>10}")
    print_once(f"{'ranks':>10}{'mixers':>10}{'rest':>10}{'mixers':>10}{'rest':>10}{'a step':>10}")
    for size in (2**power for power in range(world.bit_length())):
        mesh = init_device_mesh(device.type, (world // size, size), mesh_dim_names=("copies", "cp"))["cp"]
        cost = measure(mesh, device, arguments)
        rest = cost.flops - cost.mixer_flops, cost.bytes - cost.mixer_bytes
        print_once(
            f"{size:>10}{cost.mixer_flops / GIGA:>10.2f}{rest[0] / GIGA:>10.2f}"
            f"{cost.mixer_bytes / MEBI:>10.1f}{rest[1] / MEBI:>10.1f}{cost.seconds:>10.2f}"
        )
    dist.destroy_process_group()


def print_once(line: str) -> None:
    if dist.get_rank() == 0:
        print(line, flush=True)


def measure(mesh: DeviceMesh, device: torch.device, arguments: argparse.Namespace) -> Cost:
    """The cost of a step on the ranks of the mesh; every rank has a model of its own, with the same weights."""
    torch.manual_seed(0)
    with device:
        model = Qwen3NextForCausalLM(Qwen3NextConfig(**SETTINGS)).train()
    ringattn.hf.parallelize(model, mesh)
    ids = torch.randint(SETTINGS["vocab_size"], (1, arguments.tokens), generator=torch.Generator().manual_seed(0))
    ids = ids.to(device)
    mixers = hybrid.mixers(model)
    counter = FlopCounterMode(display=False)
    with counter, kept(model, list(mixers.values())) as found:
        loss = model(ids, labels=ids).loss
    loss.backward()
    flops = {name: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    of_mixers = sum(flops.get(f"{type(model).__name__}.{name}", 0) for name in mixers)
    seconds = []
    for _ in range(arguments.steps):
        dist.barrier()
        begin = time.perf_counter()
        model(ids, labels=ids).loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return Cost(of_mixers, flops["Global"], found["mixers"], found["all"], median(seconds))


@contextmanager
def kept(model: PreTrainedModel, mixers: list[nn.Module]) -> Iterator[dict[str, int]]:
    """How many bytes of activations are kept for the backward pass, each memory once, and how many by mixers."""
    found, within = {"mixers": 0, "all": 0}, [False]
    seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    alive = []  # so that no memory is used twice while it counts

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            alive.append(storage)
            found["all"] += storage.nbytes()
            found["mixers"] += storage.nbytes() * within[0]
        return x

    def inside(value: bool) -> Any:
        return lambda *_: within.__setitem__(0, value)

    handles = [mixer.register_forward_pre_hook(inside(True)) for mixer in mixers]
    handles += [mixer.register_forward_hook(inside(False)) for mixer in mixers]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield found
    for handle in handles:
        handle.remove()


if __name__ == "__main__":
    main()
