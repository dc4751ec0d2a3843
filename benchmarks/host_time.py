"""What a call of `attention` costs its host, and what the same attention kernels cost it: one device plays one rank.

    python benchmarks/host_time.py calls  [--kernels flash_attn_4 torch_flash] [--tokens 1024 8192] [--sizes 1 2 4 8]
    python benchmarks/host_time.py layers [--kernels flash_attn_4] [--tokens 1024 4096 8192]
    python benchmarks/host_time.py python [--sizes 1 2 4 8]

`calls`: the GPU is idle, a call is made, and the host's time until it returns is taken; "bare" are the very calls that
ours made of the kernel package, recorded with their arguments and made again. "GPU" is the time of our call for a GPU
whose host is ahead. `layers`: forward and backward of 16 layers of a model with 1B parameters on one rank of two, and
beside it the same layers with the bare kernel over the rank's own tokens. `python`: on a CPU, over 64 tokens a rank and
with a kernel that returns zeros: the Python of a call and the PyTorch operators around its kernels, in microseconds of
the calling thread.

The rank's peers are another buffer of the same GPU (`play_ranks.Played`), and their headers are its own: what hosts say
to each other before a pass is measured by agreement.py. Milliseconds, medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from random import Random
from statistics import median
from time import perf_counter, thread_time
from typing import Any, NamedTuple

import torch
from play_ranks import Played
from timing import interleaved
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from ringattn import ContextParallel, attention
from ringattn_comms.communicator import Communicator, Done, Work
from ringattn_comms.shared_buffer import SharedBuffers
from ringattn_core.kernels import choose, flash_attn_4
from ringattn_core.plan.schedule import Launch
from ringattn_core.run.kernel import Block, Grads, Kernel, Options, OutGrads, Queries
from ringattn_core.run.transport import KV

HEADS, KV_HEADS, DIM = 32, 8, 128


class PlayedGroup(Communicator):
    """One rank of a group whose other ranks always agree with it."""

    def __init__(self, rank: int, size: int, device: str = "cuda") -> None:
        self.rank, self.size, self._shared_buffers = rank, size, Played(rank, device)

    def say(self, header: bytes) -> _Echo:
        return _Echo([header] * self.size)

    def waits(self, device: torch.device) -> bool:
        return False

    def shared_buffers(self, device: torch.device) -> SharedBuffers:
        return self._shared_buffers

    def all_gather(self, x: Tensor) -> Work:
        return Done(x.expand(self.size, *x.shape))

    def send_recv(self, sends: Sequence[tuple[int, Tensor]], sources: Sequence[int], like: Tensor) -> Work:
        raise NotImplementedError("a played rank reads its peers' memory")

    def reduce_scatter(self, x: Tensor) -> Work:
        raise NotImplementedError("a played rank writes into its peers' memory")

    def all_to_all(self, x: Tensor) -> Work:
        raise NotImplementedError("a played rank reads its peers' memory")


class _Echo:
    def __init__(self, rows: list[bytes]) -> None:
        self._rows = rows

    def ready(self) -> bool:
        return True

    def wait(self) -> list[bytes]:
        return self._rows


def drawn(*shape: int, device: str = "cuda") -> Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


class Case(NamedTuple):
    """A row of the table."""

    kernel: str
    mask: str
    route: str
    size: int
    tokens: int  # of a rank

    def parallel(self, device: str = "cuda") -> ContextParallel:
        rank = min(1, self.size - 1)
        layout = "zigzag" if self.mask == "causal" else "balanced"
        group = PlayedGroup(rank, self.size, device)
        return ContextParallel(group, layout=layout, route=self.route, kernel=self.kernel, cu_seqlens=self.borders())

    def borders(self) -> list[int] | None:
        """Packed documents of random lengths, the same in every run."""
        if self.mask == "causal":
            return None
        total, count = self.tokens * self.size, int(self.mask.split()[0])
        return [0, *sorted(Random(0).sample(range(1, total), count - 1)), total]

    def passes(
        self, device: str = "cuda", heads: tuple[int, int] = (HEADS, KV_HEADS), dim: int = DIM
    ) -> tuple[Callable[[], object], Callable[[], object]]:
        """A forward pass, and a forward with its backward pass; `heads` are those of queries and of keys."""
        cp = self.parallel(device)
        # The shard of a layout may be some tokens shorter than another rank's.
        own = cp.position_ids(self.tokens * self.size).numel()
        q, k, v, dout = (drawn(1, own, heads[of], dim, device=device) for of in (0, 1, 1, 0))
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]

        def both() -> object:
            return torch.autograd.grad(attention(*leaves, cp=cp, causal=True), leaves, dout)

        return partial(attention, q, k, v, cp=cp, causal=True), both


@contextmanager
def recorded(calls: list[Callable[[], object]]) -> Iterator[None]:
    """Inside, every call of a kernel package's raw function is noted, with its arguments."""

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:
            calls.append(partial(function, *arguments, **options))
            return function(*arguments, **options)

        return noted

    names = "_flash_attention_forward", "_flash_attention_backward"
    operators = {name: getattr(torch.ops.aten, name) for name in names}
    functions: Any = flash_attn_4._functions
    try:
        for name, operator in operators.items():
            setattr(torch.ops.aten, name, noting(operator))
        vars(flash_attn_4)["_functions"] = lambda: tuple(map(noting, functions()))
        yield
    finally:
        vars(flash_attn_4)["_functions"] = functions
        for name, operator in operators.items():
            setattr(torch.ops.aten, name, operator)


def bare(call: Callable[[], object]) -> tuple[Callable[[], None], int]:
    """The kernel calls that a call makes, by themselves, and their number."""
    calls = list[Callable[[], object]]()
    with recorded(calls):
        call()
    torch.cuda.synchronize()

    def again() -> None:
        for each in calls:
            each()

    return again, len(calls)


def host_times(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Milliseconds until each call returns, the GPU being idle before; in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 5):
        for own, call in zip(times, calls, strict=True):
            torch.cuda.synchronize()
            began = perf_counter()
            call()
            own.append((perf_counter() - began) * 1e3)
    torch.cuda.synchronize()
    return [median(own[5:]) for own in times]


def table_of_calls(kernels: Sequence[str], tokens: Sequence[int], sizes: Sequence[int], repeats: int) -> None:
    print("| kernel | tokens | ranks | mask, route | kernel calls | host ms | bare | ratio | GPU ms |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    masks = (("causal", "waves"), ("causal", "gather"), ("16 documents", "auto"), ("200 documents", "auto"))
    for kernel, own, size, (mask, route) in product(kernels, tokens, sizes, masks):
        if size > 1 or (mask == "causal" and route == "waves"):
            _row_of_calls(Case(kernel, mask, route, size, own), repeats)


def _row_of_calls(case: Case, repeats: int) -> None:
    try:
        passes = case.passes()
        for each in passes:
            for _ in range(3):
                each()
        again, numbers = zip(*map(bare, passes), strict=True)
        *ours, first, second = host_times([*passes, *again], repeats)
        gpu = [each.gpu for each in interleaved(dict(zip(("fwd", "both"), passes, strict=True)), 10).values()]
    except Exception as error:  # noqa: BLE001 - the other rows are wanted
        print(f"| {case} | {type(error).__name__}: {str(error)[:200]} |", flush=True)
        return
    ratios = [own / least for own, least in zip(ours, (first, second), strict=True)]
    print(
        f"| {case.kernel} | {case.tokens:,} | {case.size} | {case.mask}, {case.route} | {numbers[0]} / {numbers[1]} "
        f"| {ours[0]:.2f} / {ours[1]:.2f} | {first:.2f} / {second:.2f} | {ratios[0]:.2f} / {ratios[1]:.2f} "
        f"| {gpu[0]:.2f} / {gpu[1]:.2f} |",
        flush=True,
    )


class Zeros(Kernel):
    """A kernel that computes nothing."""

    name = "zeros"

    def supports(self, launch: Launch, q: Tensor, kv: KV, options: Options) -> str | None:
        return None

    def forward(
        self, q: Tensor, kv: KV, launch: Launch, options: Options, out_block: Block | None = None
    ) -> tuple[Block, Tensor | None]:
        lse = q.new_zeros((q.shape[1], len(launch.rows)))
        return Block(q.new_zeros((len(launch.rows), q.shape[1], kv.v.shape[2])), lse), None

    def backward(
        self, queries: Queries, kv: KV, launch: Launch, options: Options, rng_state: Tensor | None, out_grads: OutGrads
    ) -> Grads:
        dk, dv = (x.new_zeros((len(launch.columns), *x.shape[1:])) for x in kv)
        return Grads(queries.q.new_zeros((len(launch.rows), *queries.q.shape[1:])), dk, dv)


def table_of_python(sizes: Sequence[int], repeats: int) -> None:
    choose.KERNELS["zeros"] = f"{__name__}:Zeros"
    print("| ranks | mask, route | forward us | with backward us |\n|---|---|---|---|")
    masks = (("causal", "waves"), ("causal", "gather"), ("16 documents", "waves"))
    for size, (mask, route) in product(sizes, masks):
        if size > 1 or (mask == "causal" and route == "waves"):
            forward, both = Case("zeros", mask, route, size, 64).passes("cpu", heads=(4, 2), dim=8)
            times: tuple[list[float], list[float]] = [], []
            for own, call in [*zip(times, (forward, both), strict=True)] * repeats:
                began = thread_time()
                call()
                own.append((thread_time() - began) * 1e6)
            print(f"| {size} | {mask}, {route} | {' | '.join(f'{median(own[5:]):.0f}' for own in times)} |", flush=True)


WIDTH, MIDDLE, LAYERS = 2048, 8192, 16
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Layer(nn.Module):
    """Attention with 16 query heads and 4 kv heads of 128, and a gated MLP."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        kind: Any = {"bias": False, "device": "cuda", "dtype": torch.bfloat16}
        self.qkv, self.out = nn.Linear(WIDTH, 24 * DIM, **kind), nn.Linear(16 * DIM, WIDTH, **kind)
        self.up, self.down = nn.Linear(WIDTH, 2 * MIDDLE, **kind), nn.Linear(MIDDLE, WIDTH, **kind)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(rms_norm(x, (WIDTH,))).unflatten(-1, (24, DIM)).split((16, 4, 4), dim=2)
        x = x + self.out(self.attend(q, k, v).flatten(2))
        gate, up = self.up(rms_norm(x, (WIDTH,))).chunk(2, dim=-1)
        return x + self.down(silu(gate) * up)


def alone(kernel: str) -> Attend:
    """The bare kernel with its package's own autograd."""
    if kernel == "flash_attn_4":
        from flash_attn.cute import flash_attn_func

        def by_package(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = flash_attn_func(q, k, v, causal=True)
            return out[0] if isinstance(out, tuple) else out

        return by_package

    def by_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)

    return by_torch


def table_of_layers(kernels: Sequence[str], tokens: Sequence[int], repeats: int) -> None:
    print("| kernel | tokens | ranks | step ms | of it host | alone: step ms | of it host |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for kernel, own in product(kernels, tokens):
        cp = Case(kernel, "causal", "auto", 2, own).parallel()
        attends: list[Attend] = [partial(attention, cp=cp, causal=True), alone(kernel)]
        steps = [_step(nn.Sequential(*(Layer(attend) for _ in range(LAYERS))), own) for attend in attends]
        shown = [f"{whole:.1f} | {host:.1f}" for whole, host in _step_times(steps, repeats)]
        print(f"| {kernel} | {own:,} | 2 | {' | '.join(shown)} |", flush=True)


def _step(model: nn.Module, tokens: int) -> Callable[[], None]:
    x, dout = drawn(1, tokens, WIDTH), drawn(1, tokens, WIDTH)

    def step() -> None:
        model.zero_grad()
        model(x).backward(dout)

    return step


def _step_times(steps: Sequence[Callable[[], None]], repeats: int) -> list[tuple[float, float]]:
    """Until the GPU is done, and until the host is; in turn."""
    times: list[list[tuple[float, float]]] = [[] for _ in steps]
    for _ in range(repeats + 3):
        for own, step in zip(times, steps, strict=True):
            torch.cuda.synchronize()
            began = perf_counter()
            step()
            asked = perf_counter()
            torch.cuda.synchronize()
            own.append(((perf_counter() - began) * 1e3, (asked - began) * 1e3))
    return [(median(x for x, _ in own[3:]), median(x for _, x in own[3:])) for own in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("calls", "layers", "python"))
    parser.add_argument("--kernels", nargs="+", default=["flash_attn_4", "torch_flash"])
    parser.add_argument("--tokens", type=int, nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=40)
    given = parser.parse_args()
    if given.table == "calls":
        table_of_calls(given.kernels, given.tokens or [1024, 8192], given.sizes, given.repeats)
    elif given.table == "python":
        table_of_python(given.sizes, 10 * given.repeats)
    else:
        table_of_layers(given.kernels, given.tokens or [1024, 4096, 8192], given.repeats)


if __name__ == "__main__":
    main()
