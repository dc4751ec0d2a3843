"""Small shards under a CUDA graph, beside the attention kernels alone: what transport, sums and barriers add.

    torchrun --standalone --nproc-per-node 2 benchmarks/small_shards.py --tokens 512 1024

Zigzag, forward and forward with backward, route by route; some calls are captured in one graph, as those of a model's
layers would be, and replayed. "Kernels alone" are the same launches on the same GPU, one after the other in a graph of
their own. Microseconds of a call; the slowest rank counts, medians of interleaved runs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
import torch.distributed as dist
from timing import interleaved_ranks
from torch import Tensor

import ringattn
from ringattn.call import CallSpec
from ringattn_core.run.kernel import NO_OUT_GRADS, Queries
from ringattn_core.run.transport import KV


def captured(function: Callable[[], object], calls: int) -> Callable[[], None]:
    """Replays what some calls of a function ask of the GPU."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(calls):
            function()

    def replay() -> None:
        graph.replay()
        assert function is not None  # Its tensors are the graph's, and have to stay.

    return replay


def drawn(tokens: int, heads: int) -> Tensor:
    return torch.randn(tokens, heads, 128, device="cuda", dtype=torch.bfloat16)


def ours(tokens: int, kernel: str, route: str, *, backward: bool) -> Callable[[], object]:
    cp = ringattn.ContextParallel(layout="zigzag", route=route, kernel=kernel)
    *inputs, dout = drawn(tokens, 32), drawn(tokens, 8), drawn(tokens, 8), drawn(tokens, 32)
    inputs = [x.requires_grad_(backward) for x in inputs]

    def both() -> object:
        return torch.autograd.grad(ringattn.attention(*inputs, cp=cp, causal=True), inputs, dout)

    return both if backward else partial(ringattn.attention, *inputs, cp=cp, causal=True)


def alone(tokens: int, kernel: str, route: str, *, backward: bool) -> Callable[[], object]:
    """This rank's launches, one after the other."""
    cp = ringattn.ContextParallel(layout="zigzag", route=route, kernel=kernel)
    q, out, dout, lse = drawn(tokens, 32), drawn(tokens, 32), drawn(tokens, 32), torch.rand(32, tokens, device="cuda")
    k, v = (drawn(tokens * cp.cp_size, 8) for _ in range(2))
    request = CallSpec(cp, True, (-1, -1), 0.0, 128**-0.5, 0.0, deterministic=False, return_lse=False)
    call = request.plan(q, k[:tokens], v[:tokens], None, None, 0)
    first, second = (
        [launch for step in each.schedule.steps for launch in step.launches]
        for each in (call.forward_pass, call.backward_pass)
    )
    queries = Queries(q, out, dout, lse + 8, None)

    def run() -> None:
        for launch in first:
            call.forward_pass.kernel.forward(q, KV(k, v), launch, call.options)
        for launch in second if backward else ():
            call.backward_pass.kernel.backward(queries, KV(k, v), launch, call.options, None, NO_OUT_GRADS)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024], help="tokens on each GPU")
    parser.add_argument("--routes", nargs="+", default=["auto", "waves", "gather"])
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 8], help="in one graph")
    parser.add_argument("--kernel", default="flash_attn_4")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    for tokens, route, calls in product(arguments.tokens, arguments.routes, arguments.calls):
        cases = {
            f"{name} {backward}": captured(make(tokens, arguments.kernel, route, backward=backward), calls)
            for backward in (False, True)
            for name, make in (("kernels alone", alone), ("ours", ours))
        }
        times = interleaved_ranks(cases, arguments.repeats, most=20)
        for backward, kind in ((False, "forward"), (True, "both")):
            whole, kernels = (times[f"{name} {backward}"].gpu / calls * 1e3 for name in ("ours", "kernels alone"))
            if rank == 0:
                print(f"{tokens:6} tokens a GPU, {route:8} {calls} calls, {kind:8}: {whole:6.1f} us, kernels alone "
                      f"{kernels:6.1f} us: {whole / kernels:.2f} times", flush=True)  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
