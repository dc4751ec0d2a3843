"""One device plays one rank of a group that generates: tokens per second with a long text in the cache.

    python benchmarks/decode.py --cache 32768 131072 --sizes 1 2 4 8

A model of Llama's shape with random weights reads a text and generates some tokens: alone, with PyTorch's attention and
transformers' cache, and as the first rank of groups of several sizes. The data of the other ranks is copied on the
same device, so that copies are timed in place of transfers: in decoding these are num_heads * (head_dim + 1) floats per
row and layer from every rank. `prefill` is the time of the first call, `tokens/s` includes the host's time, and
`attention` is the device's time for one token in one layer: a rank's share, and the merge of all ranks' results. Each
`of alone` divides by the row of one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
import transformers
from timing import interleaved
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import ringattn.hf
from ringattn.hf import decode
from ringattn.hf.cache import ARGUMENT
from ringattn.hf.decode import Decoding, Reach
from ringattn_comms.communicator import Communicator, Done, Work

WARM_UP = 3  # tokens


class Played(Communicator):
    """The first rank of a group whose others send what it sends itself."""

    def __init__(self, size: int) -> None:
        self.rank, self.size = 0, size

    def send_recv(self, sends: Sequence[tuple[int, Tensor]], sources: Sequence[int], like: Tensor) -> Work:
        return Done(like.expand(len(sources), *like.shape).contiguous())

    def all_gather(self, x: Tensor) -> Work:
        return Done(x.expand(self.size, *x.shape).contiguous())

    def reduce_scatter(self, x: Tensor) -> Work:
        return Done(x[0])

    def all_to_all(self, x: Tensor) -> Work:
        return Done(x.clone())


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=int, nargs="+", default=[32768, 131072], help="tokens of the text")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="ranks of the group")
    parser.add_argument("--tokens", type=int, default=32, help="tokens that are generated")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args(given)
    model = build(arguments)
    name = "CPU" if arguments.device == "cpu" else torch.cuda.get_device_name()
    print(
        f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, {arguments.layers} layers, "
        f"{arguments.heads}/{arguments.kv_heads} heads of {arguments.head_dim}, {arguments.dtype}, "
        f"{arguments.rows} rows, {arguments.tokens} tokens",
        flush=True,
    )
    print(
        f"{'cache':>8} {'ranks':>6} {'prefill s':>10} {'of alone':>9} {'tokens/s':>9} {'of alone':>9} "
        f"{'ms a token':>11} {'attention us':>13}",
        flush=True,
    )
    for length in arguments.cache:
        alone = prefill, token = generation(model, arguments, length, 0)
        for size in (0, *arguments.sizes):
            if size:
                prefill, token = generation(model, arguments, length, size)
            attention = of_one_layer(arguments, length, size) * 1e3
            print(
                f"{length:8} {size or 'alone':>6} {prefill / 1e3:10.3f} {prefill / alone[0]:9.2f} "
                f"{arguments.rows / token * 1e3:9.1f} {alone[1] / token:9.2f} {token:11.2f} {attention:13.1f}",
                flush=True,
            )


def build(arguments: argparse.Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=4 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.kv_heads,
        head_dim=arguments.head_dim,
        max_position_embeddings=max(arguments.cache) + arguments.tokens + WARM_UP,
    )
    with torch.device(arguments.device):
        return LlamaForCausalLM(config).to(getattr(torch, arguments.dtype)).eval()


@torch.no_grad()
def generation(model: LlamaForCausalLM, arguments: argparse.Namespace, length: int, size: int) -> tuple[float, float]:
    """Milliseconds of the first call, and of a token after it; size 0 is transformers alone."""
    tokens = torch.randint(arguments.vocabulary, (arguments.rows, length), device=arguments.device)
    if size:
        ringattn.hf.parallelize(model, Played(size))
    else:
        ringattn.hf.restore(model, "sdpa")

    def read(x: Tensor, cache: Any) -> Tensor:
        logits = model(x, **{ARGUMENT: cache}, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1:].argmax(dim=-1)

    def cache() -> Any:
        return ringattn.hf.ShardedCache(Played(size)) if size else DynamicCache(config=model.config)

    read(tokens, cache())  # The first call plans and compiles.
    prefill, (token, kept) = timed(lambda: (read(tokens, begun := cache()), begun), arguments.device)
    times = []
    for _ in range(WARM_UP + arguments.tokens):
        time, token = timed(lambda token=token: read(token, kept), arguments.device)  # type: ignore[misc]
        times.append(time)
    return prefill, median(times[WARM_UP:])


@torch.no_grad()
def of_one_layer(arguments: argparse.Namespace, length: int, size: int) -> float:
    """Milliseconds of one layer's attention for one token, without the token's keys; size 0 is PyTorch's own."""
    dtype, device = getattr(torch, arguments.dtype), arguments.device
    kept = -(-length // max(1, size))
    q = torch.randn(arguments.rows, arguments.heads, 1, arguments.head_dim, dtype=dtype, device=device)
    # Several layers' keys in turn, or those of one might stay in the GPU's cache.
    shape = arguments.rows, arguments.kv_heads, kept, arguments.head_dim
    layers = [
        [torch.randn(shape, dtype=dtype, device=device) for _ in range(2)] for _ in range(min(4, arguments.layers))
    ]
    cache = ringattn.hf.ShardedCache(Played(max(1, size)))
    cache.length, cache.held = length, list(range(0, length, max(1, size)))
    step = Decoding(cache, 1, None, q.device)
    options = {"scale": arguments.head_dim**-0.5, "reach": Reach(), "softcap": 0.0, "sinks": None}

    def all_layers() -> None:
        for k, v in layers:
            if size:
                decode.attend(q, k, v, step, **options)
            else:
                torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    if device == "cpu":
        time = median(timed(all_layers, device)[0] for _ in range(5))
    else:
        time = interleaved({"attention": all_layers}, repeats=20)["attention"].gpu
    return time / len(layers)


def timed(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Milliseconds from the call to the end of its work, and what it returned."""
    wait = torch.cuda.synchronize if device != "cpu" else (lambda: None)
    wait()
    begin = perf_counter()
    result = call()
    wait()
    return (perf_counter() - begin) * 1e3, result


if __name__ == "__main__":
    main()
