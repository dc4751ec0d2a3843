"""PyTorch's flash attention against the reference kernel on a CPU: what the default on CPUs rests on.

    python benchmarks/cpu_kernels.py --tokens 1024 2048 4096

Prints the milliseconds of one launch, forward and forward + backward, the best of several runs that alternate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import perf_counter

import torch

from ringattn_core.kernels.reference import Reference
from ringattn_core.kernels.torch_flash_cpu import TorchFlashCpu
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import FAR, Tile
from ringattn_core.run.kernel import NO_OUT_GRADS, Kernel, Options, Queries
from ringattn_core.run.transport import KV


def work(
    kernel: Kernel, launch: Launch, heads: tuple[int, int], dim: int, dtype: torch.dtype
) -> list[Callable[[], None]]:
    """A forward pass, and a forward and a backward pass."""
    tokens, options = len(launch.rows), Options(dim**-0.5)
    q, k, v, dout = (torch.randn(tokens, count, dim).to(dtype) for count in (heads[0], heads[1], heads[1], heads[0]))

    def forward() -> None:
        kernel.forward(q, KV(k, v), launch, options)

    def both() -> None:
        (out, lse), state = kernel.forward(q, KV(k, v), launch, options)
        delta = (dout.float() * out.float()).sum(-1).T
        kernel.backward(Queries(q, out.to(dtype), dout, lse, delta), KV(k, v), launch, options, state, NO_OUT_GRADS)

    return [forward, both]


def fastest(cases: list[Callable[[], None]], repeats: int) -> list[float]:
    """Milliseconds of the best run of each, one run of each in turn."""
    times = [[] for _ in cases]
    for _ in range(repeats):
        for case, found in zip(cases, times, strict=True):
            start = perf_counter()
            case()
            found.append(perf_counter() - start)
    return [1e3 * min(found) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    kernels = Reference(), TorchFlashCpu()
    print(
        f"{torch.get_num_threads()} threads, {options.heads}/{options.kv_heads} heads of {options.head_dim}; "
        "milliseconds, forward / forward + backward"
    )
    print(
        f"{'dtype':<10}{'mask':<8}{'tokens':>7}", *(f"{kernel.name:>18}" for kernel in kernels), f"{'times faster':>15}"
    )
    for dtype in (torch.float32, torch.bfloat16):
        for mask, high in (("causal", 0), ("full", FAR)):
            for tokens in options.tokens:
                launch = Launch((Tile(range(tokens), range(tokens), high=high),))
                cases = [
                    case
                    for kernel in kernels
                    for case in work(kernel, launch, (options.heads, options.kv_heads), options.head_dim, dtype)
                ]
                slow, slow_both, fast, fast_both = fastest(cases, options.repeats)
                print(
                    f"{str(dtype).partition('.')[2]:<10}{mask:<8}{tokens:>7} {slow:>9.1f} /{slow_both:>7.0f}",
                    f"{fast:>9.1f} /{fast_both:>7.0f} {slow / fast:>6.1f} /{slow_both / fast_both:>7.1f}",
                )


if __name__ == "__main__":
    main()
