"""Masks on one GPU: ours on one rank, ours playing each rank of a group, and FlexAttention, interleaved.

    python benchmarks/masks.py --tokens 16384 32768 --heads 32:8 64:8 --kernels flash_attn_4

Prints TFLOP/s on live cells, forward / backward: 4 and 10 x live cells x query heads x head dim FLOP, by the pass's
time. Then, for each route, the time of one rank divided by the ranks, as a share of the slowest rank's time: what
ranks compute and sum, and copies of the bytes that would travel, on another stream of the same GPU. "error" is the
norm of the difference of out between ours on one rank and FlexAttention, as a share of out's norm; the same for dq.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise, product
from typing import NamedTuple

import torch
from peers import documents
from play_ranks import passes
from timing import Times, interleaved
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ringattn import masks
from ringattn.masks import Mask
from ringattn_core.errors import UnsupportedError
from ringattn_core.plan.layout import layout_named
from ringattn_core.plan.mask_layout import layout_for
from ringattn_core.plan.mask_planner import plan_mask
from ringattn_core.plan.route import route_named

DIM = 128
Mod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """A mask, and the same as a mask_mod of FlexAttention."""

    mask: Mask
    mod: Mod


def causal(n: int) -> Case:
    return Case(masks.causal(n), lambda _b, _h, q, k: q >= k)


def images(n: int) -> Case:
    """A causal text with an image of 512 tokens in each 1,024."""
    image = torch.arange(n, device="cuda") // 512
    mask = masks.causal(n) | masks.two_way([range(start, start + 512) for start in range(512, n, 1024)])
    return Case(mask, lambda _b, _h, q, k: (q >= k) | ((image[q] == image[k]) & (image[q] % 2 == 1)))


def shared_prefix(n: int) -> Case:
    """A prompt of a quarter of the tokens, and answers of 1,024."""
    prompt = n // 4
    answer = (torch.arange(n, device="cuda") - prompt) // 1024
    mask = masks.shared_prefix(prompt, [1024] * ((n - prompt) // 1024))
    return Case(mask, lambda _b, _h, q, k: (q >= k) & ((k < prompt) | (answer[q] == answer[k])))


def prefix(n: int) -> Case:
    """A prefix of a quarter of the tokens."""
    length = n // 4
    return Case(masks.prefix(n, length), lambda _b, _h, q, k: (q >= k) | ((q < length) & (k < length)))


def packed(n: int) -> Case:
    """Causal documents, as long as those of corpora."""
    of, lengths = _documents(n)
    return Case(masks.packed(lengths), lambda _b, _h, q, k: (q >= k) & (of[q] == of[k]))


def block_causal_documents(n: int) -> Case:
    """The same documents; a token sees all of its block of 512, and the blocks before."""
    of, lengths = _documents(n)
    live = [[column <= row for column in range(n // 512)] for row in range(n // 512)]
    mask = masks.blocks(live, 512) & masks.packed(lengths, window=(-1, -1))
    return Case(mask, lambda _b, _h, q, k: (q // 512 >= k // 512) & (of[q] == of[k]))


def tree(n: int) -> Case:
    """A binary tree of rollouts, of 63 nodes in six levels."""
    parents = [-1, *((node - 1) // 2 for node in range(1, 63))]
    lengths = [n // 63 + (node < n % 63) for node in range(63)]
    node = torch.arange(63, device="cuda").repeat_interleave(torch.tensor(lengths, device="cuda"))
    above = torch.eye(63, dtype=torch.bool, device="cuda")
    for child in range(1, 63):
        above[child] |= above[parents[child]]
    return Case(masks.tree(parents, lengths), lambda _b, _h, q, k: (q >= k) & above[node[q], node[k]])


def window_and_first(n: int) -> Case:
    """A sliding window of 4,096 tokens, and the first 64."""
    mask = masks.window(n, 4095) | masks.first(n, 64) & masks.causal(n)
    return Case(mask, lambda _b, _h, q, k: (q >= k) & ((q - k < 4096) | (k < 64)))


CASES = {
    "causal": causal,
    "images": images,
    "shared prefix": shared_prefix,
    "prefix": prefix,
    "packed documents": packed,
    "block-causal documents": block_causal_documents,
    "tree": tree,
    "window + first": window_and_first,
}


def _documents(n: int) -> tuple[Tensor, list[int]]:
    lengths = [stop - start for start, stop in pairwise(documents(n))]
    of = torch.arange(len(lengths), device="cuda").repeat_interleave(torch.tensor(lengths, device="cuda"))
    return of, lengths


class Passes(NamedTuple):
    """Two functions without arguments that run one pass each."""

    forward: Callable[[], object]
    backward: Callable[[], object]


def on_ranks(mask: Mask, layout: str, route: str, size: int, kernel: str, whole: Sequence[Tensor]) -> Iterator[Passes]:
    """Each rank's passes, over its rows of the whole q, k, v and dout."""
    shared = layout_for(layout_named(layout), mask)
    for rank in range(size):
        schedule = plan_mask(mask, shared, route_named(route), rank, size)
        tensors = [x[: schedule.queries.length(rank)] for x in whole]  # Which rows they are takes no time.
        forward, backward = passes(schedule, kernel, tensors)
        yield Passes(forward, partial(backward, forward()))


def flex(mod: Mod, whole: Sequence[Tensor]) -> tuple[Passes, Tensor, Tensor]:
    """FlexAttention, compiled; also its out and dq, (tokens, num_heads, head_dim)."""
    q, k, v, dout = (x.transpose(0, 1)[None].contiguous() for x in whole)
    block_mask = create_block_mask(mod, None, None, q.shape[2], k.shape[2], device="cuda")
    compiled = torch.compile(flex_attention, dynamic=False)
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def forward() -> Tensor:
        out: Tensor = compiled(*inputs, block_mask=block_mask, enable_gqa=True)
        return out

    out = forward()

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, inputs, dout, retain_graph=True)

    def without_graph() -> Tensor:
        with torch.no_grad():
            return forward()

    return Passes(without_graph, backward), out[0].detach().transpose(0, 1), backward()[0][0].transpose(0, 1)


def measure(name: str, n: int, heads: tuple[int, int], asked: argparse.Namespace) -> None:
    """Print what one mask takes."""
    case, (query_heads, kv_heads) = CASES[name](n), heads
    # PyTorch compiles eight variants of a function and no more; FlexAttention that is not compiled is dense.
    torch.compiler.reset()
    torch.manual_seed(0)
    counts = query_heads, kv_heads, kv_heads, query_heads
    whole = [torch.randn(n, count, DIM, device="cuda", dtype=torch.bfloat16) for count in counts]
    theirs, out, dq = flex(case.mod, whole)
    cases, errors = {"flex": theirs}, list[float]()
    for kernel in asked.kernels:
        try:
            (alone,) = on_ranks(case.mask, "contiguous", "ring", 1, kernel, whole)
        except UnsupportedError:
            continue
        cases[kernel] = alone
        result, grads = alone.forward(), alone.backward()
        errors += [relative(result.out, out), relative(grads.dq, dq)]  # type: ignore[attr-defined]
        for route in asked.routes:
            for rank, played in enumerate(on_ranks(case.mask, asked.layout, route, asked.size, kernel, whole)):
                cases[f"{kernel} {route} {rank}"] = played
    del out, dq
    calls = {f"{key} {kind}": call for key, found in cases.items() for kind, call in found._asdict().items()}
    times = interleaved(calls, asked.repeats)
    flop = 4 * case.mask.area * query_heads * DIM
    speeds = {key: (_speed(flop, times, key, "forward"), _speed(2.5 * flop, times, key, "backward")) for key in cases}
    able = [kernel for kernel in asked.kernels if kernel in cases]
    cells = [f"{key} {speeds[key][0]:.0f} / {speeds[key][1]:.0f}" for key in ("flex", *able)]
    cells += [_played(times, kernel, route, asked.size) for kernel, route in product(able, asked.routes)]
    live = 100 * case.mask.area / n**2
    print(f"| {name} | {n} | {query_heads}:{kv_heads} | {live:.1f} % | {' | '.join(cells)} | error", end=" ")
    print(" ".join(f"{error:.1e}" for error in errors), "|", flush=True)


def _speed(flop: float, times: dict[str, Times], key: str, kind: str) -> float:
    return flop / times[f"{key} {kind}"].gpu / 1e9


def _played(times: dict[str, Times], kernel: str, route: str, size: int) -> str:
    shares = []
    for kind in ("forward", "backward"):
        slowest = max(times[f"{kernel} {route} {rank} {kind}"].gpu for rank in range(size))
        shares.append(100 * times[f"{kernel} {kind}"].gpu / size / slowest)
    return f"{route} on {size} {shares[0]:.1f} / {shares[1]:.1f} %"


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384, 32768])
    parser.add_argument("--heads", nargs="+", default=["32:8", "64:8"])
    parser.add_argument("--kernels", nargs="+", default=["flash_attn_4", "torch_flash", "cudnn"])
    parser.add_argument("--size", type=int, default=8, help="ranks that are played")
    parser.add_argument("--layout", default="balanced")
    parser.add_argument("--routes", nargs="*", default=["waves(2)", "gather"])
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    for name, n, heads in product(asked.masks, asked.tokens, asked.heads):
        query_heads, kv_heads = map(int, heads.split(":"))
        measure(name, n, (query_heads, kv_heads), asked)


if __name__ == "__main__":
    main()
