"""What every way to move bytes has to do between real processes: the same checks on CPUs over gloo and on GPUs.

A process takes seconds to start on a GPU, so one pair of them runs all checks, and stops at the first that fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from time import monotonic

import torch
import torch.distributed as dist
from torch import Tensor

from adapters.sharded import Answer, Whole, at, draw, errors, rows_of, truth
from comms.test_communicator import CHECKS
from ringattn import ContextParallel, attention, masks
from ringattn_comms.backends.cupy_nccl import CupyNccl
from ringattn_comms.backends.torch_dist import TorchDist
from ringattn_comms.communicator import Communicator, SingleRank
from ringattn_comms.shared_buffer import SharedBuffers

PACKED = (0, 40, 41, 200, 256)
LAYOUTS, ROUTES = ("contiguous", "zigzag", "striped"), ("ring", "waves", "gather")
MASKS = (
    ("balanced", masks.packed([40, 1, 159, 56]) | masks.two_way([range(5, 30), range(60, 170)], 256)),
    ("contiguous", masks.window(256, 50) | masks.first(256, 9)),
    ("zigzag", masks.shared_prefix(100, [50, 70, 36])),
)
WINDOWS = ({"causal": True}, {"window_size": (50, 0)}, {"window_size": (-1, -1)})


class Messages(TorchDist):
    """A process group that sends messages also where its GPUs reach each other."""

    def shared_buffers(self, device: torch.device) -> SharedBuffers | None:
        return None


TRANSPORTS: dict[str, Callable[[], Communicator]] = {
    "torch_dist": Messages,
    "cupy_nccl": CupyNccl.of,
    "symmetric": TorchDist,
}


@dataclass(frozen=True)
class Bench:
    """Where a check runs: a group, and the device of this process."""

    comm: Communicator
    device: torch.device

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def kernel(self) -> str | None:
        """For 16 bits: on a GPU one that needs no compiler, on a CPU the one that can do what is asked."""
        return "torch_flash" if self.on_gpu else None

    def leaves(self, whole: Whole, rows: Tensor) -> list[Tensor]:
        """This rank's q, k and v of whole tensors."""
        return [x.index_select(-3, rows).to(self.device).requires_grad_() for x in whole[:3]]

    def rows(self, cp: ContextParallel, length: int) -> Tensor:
        return rows_of(cp, length, self.comm.size)[self.comm.rank]


Check = Callable[[Bench], None]
BATTERY: dict[str, Check] = {}


def check(function: Check) -> Check:
    BATTERY[function.__name__] = function
    return function


def run(transports: Sequence[str], device_type: str) -> dict[str, float]:
    """The life of a process: all checks over some transports, and the seconds that each took."""
    device = torch.device(device_type, dist.get_rank()) if device_type == "cuda" else torch.device("cpu")
    took = {}
    for transport in transports:
        bench = Bench(TRANSPORTS[transport](), device)
        for name, function in BATTERY.items():
            start = monotonic()
            try:
                function(bench)
                if bench.on_gpu:
                    torch.cuda.synchronize()
            except Exception as error:
                raise AssertionError(f"{name}, over {transport} on {device}") from error
            took[f"{transport} {name}"] = monotonic() - start
    return took


@check
def it_is_a_communicator(bench: Bench) -> None:
    for promise, comm in product(CHECKS, (bench.comm, bench.comm.second_communicator(bench.device))):
        with bench.device:
            promise(comm)


@check
def windows_are_there_where_they_are_wanted(bench: Bench) -> None:
    """Without one, `connect` would send messages, and nothing here would tell."""
    assert (bench.comm.shared_buffers(bench.device) is not None) == (bench.on_gpu and type(bench.comm) is TorchDist)


@check
def gradients_have_a_queue_of_their_own_where_there_are_queues(bench: Bench) -> None:
    comm = bench.comm
    second, queues = comm.second_communicator(bench.device), bench.on_gpu or isinstance(comm, CupyNccl)
    assert (second is not comm) == queues
    assert (second.rank, second.size) == (comm.rank, comm.size)
    if queues and isinstance(comm, TorchDist):
        assert isinstance(second, TorchDist) and second.group is not comm.group
        assert comm.second_communicator(bench.device).group is second.group  # type: ignore[attr-defined]
    assert bench.on_gpu or comm.second_communicator(torch.device("cpu")) is comm or isinstance(comm, CupyNccl)


@check
def attention_is_exact(bench: Bench) -> None:
    """Every layout over every route, packed or not, with every window: to 1e-10 in float64."""
    for layout, route, packed, window in product(LAYOUTS, ROUTES, (None, PACKED), WINDOWS):
        cp = ContextParallel(bench.comm, layout, route, packed, kernel="reference")
        found, rows = _attend(bench, cp, _whole(torch.float64, 16), **window)
        for name, error in errors(found, at(_truth(torch.float64, 16, packed, **window), rows)).items():
            assert error <= 1e-10, f"{layout} {route} {packed} {window}: {name} is off by {error}"


@check
def attention_in_16_bits_is_as_good_as_plain_pytorch(bench: Bench) -> None:
    """Every error against float64 is at most twice that of plain PyTorch in the same dtype."""
    narrow, layouts = torch.bfloat16, LAYOUTS if bench.on_gpu else LAYOUTS[1:2]
    for layout, route, packed, window in product(layouts, ROUTES, (None, PACKED), WINDOWS):
        cp = ContextParallel(bench.comm, layout, route, packed, kernel=bench.kernel)
        found, rows = _attend(bench, cp, _whole(narrow, 64), **window)
        exact = _truth(narrow, 64, packed, **window)
        fair = errors(_truth(narrow, 64, packed, narrow, **window), exact)
        for name, error in errors(found, at(exact, rows)).items():
            assert error <= 2 * fair[name] + 1e-4, f"{layout} {route} {packed} {window}: {name} is off by {error}"


@check
def masks_are_exact(bench: Bench) -> None:
    """Images in packed text, a window and global tokens, answers to one prompt, on every route."""
    for (layout, mask), route in product(MASKS, ROUTES):
        live = torch.tensor([list(row) for row in mask.dense()], dtype=torch.bool)
        for dtype, dim, kernel in ((torch.float64, 16, "reference"), (torch.bfloat16, 64, bench.kernel)):
            whole = _whole(dtype, dim)
            found, rows = _attend(bench, ContextParallel(bench.comm, layout, route, kernel=kernel, mask=mask), whole)
            exact = _without_lse(whole, live=live)
            fair = errors(_without_lse(whole, live=live, dtype=dtype), exact)
            for name, error in errors(found, at(exact, rows)).items():
                limit = 1e-10 if dtype == torch.float64 else 2 * fair[name] + 1e-4
                assert error <= limit, f"{mask} {layout} {route} {dtype}: {name} is off by {error}"


@check
def what_is_not_finite_is_seen_where_dense_attention_has_it(bench: Bench) -> None:
    """In two of four documents. Exactly there on a CPU; on a GPU, whose kernels go by tiles, in no other document."""
    for dtype, kernel in ((torch.float64, "reference"), (torch.bfloat16, "torch_flash")):
        good, bad = _whole(dtype, 16), _spoiled(_whole(dtype, 16))
        whole_truth = _without_lse(bad, PACKED, causal=True, apart=True)
        for layout, route in zip(LAYOUTS, ROUTES, strict=True):
            cp = ContextParallel(bench.comm, layout, route, PACKED, kernel=kernel)
            found, rows = _attend(bench, cp, bad, causal=True)
            for name, mine, exact in zip(Answer._fields, found, at(whole_truth, rows), strict=True):
                hidden = mine.isfinite() & ~exact.isfinite()
                spread = exact.isfinite() & ~mine.isfinite()
                assert not hidden.any(), f"{layout} {route} {dtype}: {name} hides {int(hidden.sum())}"
                assert bench.on_gpu or not spread.any(), (
                    f"{layout} {route} {dtype}: {name} has {int(spread.sum())} more"
                )
            clean = ((rows >= PACKED[1]) & (rows < PACKED[3])).nonzero().flatten()
            expected = at(_attend(bench, cp, good, causal=True)[0], clean)
            for name, error in errors(at(found, clean), expected).items():
                assert error == 0, f"{layout} {route} {dtype}: {name} of a document without faults is off by {error}"


@check
def shapes_may_change_from_call_to_call(bench: Bench) -> None:
    """The window of a group grows, and is used again for less, without a word between the ranks."""
    found, expected = [], []
    for length, route in product((64, 256, 32, 128, 64), ROUTES):
        cp = ContextParallel(bench.comm, route=route, kernel="reference")
        whole, rows = draw(length, (), dim=8), bench.rows(cp, length)
        found.append(_passes(cp, bench.leaves(whole, rows), whole.dout[rows].to(bench.device)))
        expected.append(at(_without_lse(whole, causal=True), rows))
    for got, want in zip(found, expected, strict=True):
        for mine, exact in zip(got, (want.out, *want[2:]), strict=True):
            torch.testing.assert_close(mine.cpu(), exact, rtol=0, atol=1e-10)


@check
def two_layers_are_under_way_at_once(bench: Bench) -> None:
    """The second layer's keys travel while the first is at work; gradients come back through both."""
    whole = draw(64, (), kv_heads=4, dim=8)

    def loss(cp: ContextParallel, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first = attention(q, k, v, cp=cp, causal=True)
        side = attention(k, q, v, cp=cp, window_size=(9, 0))
        return (attention(first, k, side, cp=cp, causal=True) * (1 + first)).sum()

    alone = [x.clone().requires_grad_() for x in whole[:3]]
    solo = ContextParallel(SingleRank(), layout="contiguous", kernel="reference")
    expected = torch.autograd.grad(loss(solo, *alone), alone)
    for route in ROUTES:
        cp = ContextParallel(bench.comm, route=route, kernel="reference")
        rows = bench.rows(cp, 64)
        own = bench.leaves(whole, rows)
        for mine, exact in zip(torch.autograd.grad(loss(cp, *own), own), expected, strict=True):
            torch.testing.assert_close(mine.cpu(), exact[rows], rtol=0, atol=1e-10)


@check
def the_host_waits_for_nothing(bench: Bench) -> None:
    for route, packed in product(ROUTES, (None, PACKED)):
        cp = ContextParallel(bench.comm, "zigzag", route, packed, kernel=bench.kernel)
        whole = _whole(torch.bfloat16, 64)
        rows = bench.rows(cp, 256)
        own, dout = bench.leaves(whole, rows), whole.dout[rows].to(bench.device)
        _passes(cp, own, dout)
        with _no_sync(bench):
            _passes(cp, own, dout)


@check
def it_compiles_to_one_graph(bench: Bench) -> None:
    cp = ContextParallel(bench.comm, kernel="reference")
    whole, rows = draw(64, (), dim=8), bench.rows(cp, 64)

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q * 1.5, k, v, cp=cp, causal=True).square().sum()

    own = bench.leaves(whole, rows)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for mine, eager in zip(torch.autograd.grad(compiled(*own), own), torch.autograd.grad(loss(*own), own), strict=True):
        torch.testing.assert_close(mine, eager, rtol=0, atol=1e-12)


@check
def passes_are_captured_and_replayed(bench: Bench) -> None:
    """A graph of one pass and one of both, replayed with other inputs and other calls between, ranks out of step."""
    for route in ROUTES if bench.on_gpu else ():
        cp = ContextParallel(bench.comm, route=route, kernel=bench.kernel)
        own = bench.leaves(_whole(torch.bfloat16, 64), bench.rows(cp, 256))
        dout = torch.ones_like(own[0])

        def forward(cp: ContextParallel = cp, own: list[Tensor] = own) -> list[Tensor]:
            with torch.no_grad():
                return [attention(*own, cp=cp, causal=True)]

        def both(cp: ContextParallel = cp, own: list[Tensor] = own, dout: Tensor = dout) -> list[Tensor]:
            return _passes(cp, own, dout)

        for call in (forward, both):
            _replay(bench, call, own)


def _replay(bench: Bench, call: Callable[[], list[Tensor]], inputs: list[Tensor]) -> None:
    """Capture a call; what replays find, all asked for before any is looked at, is what the call finds."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # NCCL's watchdog asks for events in a thread of its own, which the default mode forbids to all threads.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        captured = call()
    fresh = [[torch.randn_like(x) for x in inputs] for _ in range(6)]
    replayed, called = [], []
    for number, values in enumerate(fresh):
        _fill(inputs, values)
        if number % 2 == bench.comm.rank:  # One rank is a few milliseconds late, then the other.
            torch.cuda._sleep(5_000_000)
        graph.replay()
        replayed.append([x.clone() for x in captured])
        if number % 3 == 2:
            call()  # It uses the same memory as the replays.
    for values in fresh:
        _fill(inputs, values)
        called.append([x.clone() for x in call()])
    for got, want in zip(replayed, called, strict=True):
        for mine, eager in zip(got, want, strict=True):
            torch.testing.assert_close(mine, eager, rtol=2e-2, atol=2e-2)
    assert not torch.equal(replayed[0][0], replayed[1][0])


def _fill(inputs: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        for x, value in zip(inputs, values, strict=True):
            x.copy_(value)


@contextmanager
def _no_sync(bench: Bench) -> Iterator[None]:
    """Inside, PyTorch raises where the host would wait for the GPU."""
    if not bench.on_gpu:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _passes(cp: ContextParallel, own: list[Tensor], dout: Tensor) -> list[Tensor]:
    """out, dq, dk, dv of causal attention."""
    out = attention(*own, cp=cp, causal=True)
    return [out.detach(), *torch.autograd.grad(out, own, dout)]


def _attend(bench: Bench, cp: ContextParallel, whole: Whole, **window: object) -> tuple[Answer, Tensor]:
    """This rank's answer, on the CPU, and the tokens that it is for."""
    rows = bench.rows(cp, len(whole.q))
    own = bench.leaves(whole, rows)
    out, lse = attention(*own, cp=cp, return_lse=True, **window)
    grads = torch.autograd.grad(out, own, whole.dout[rows].to(bench.device))
    return Answer(*(x.detach().cpu() for x in (out, lse, *grads))), rows


@cache
def _whole(dtype: torch.dtype, dim: int) -> Whole:
    return draw(PACKED[-1], (), dim=dim, dtype=dtype)


def _spoiled(whole: Whole) -> Whole:
    """inf in a query and NaN in a value of the first document, NaN in a key of the last."""
    q, k, v = (x.clone() for x in whole[:3])
    q[7, 1, 3], v[20, 0, 2], k[220, 1, 0] = torch.inf, torch.nan, torch.nan
    return whole._replace(q=q, k=k, v=v)


@cache
def _truth(
    dtype: torch.dtype,
    dim: int,
    packed: tuple[int, ...] | None,
    computed_in: torch.dtype = torch.float64,
    **window: object,
) -> Answer:
    return _without_lse(_whole(dtype, dim), packed, dtype=computed_in, **window)


def _without_lse(whole: Whole, packed: tuple[int, ...] | None = None, **options: object) -> Answer:
    """The oracle's answer where nothing depends on lse: a gradient of it would go to the reference kernel."""
    return truth(whole._replace(dlse=torch.zeros_like(whole.dlse)), packed, **options)
