"""The transports: what they bring, what they carry home, and that all ranks call for it in the same order."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate, product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from problem import Part, Problem, assert_exact
from ringattn_comms import one_sided
from ringattn_comms import shared_buffer as windows_of
from ringattn_comms.backends.threads import Threads, ThreadSharedBuffers, run
from ringattn_comms.communicator import Communicator, Work
from ringattn_comms.connect import connect
from ringattn_comms.one_sided import OneSided
from ringattn_comms.ring import Ring
from ringattn_comms.shared_buffer import Move, SharedBuffer, copy
from ringattn_comms.waves import Waves
from ringattn_core.look.verify import verify
from ringattn_core.plan.layout import LAYOUTS, layout_named
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import Route, at_once, route_named
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run import concurrent_launches
from ringattn_core.run.transport import KV, LocalTransport, Transport

BORDERS = (0, 7, 7, 9, 31)
ROUTES = ("ring", "waves(2)", "waves(3)", "gather", "double_ring(2)")
# Nodes of two need an even number of ranks.
CASES = [(size, route) for size in (2, 3, 4, 5) for route in ROUTES if size % 2 == 0 or not route.startswith("double")]
HEADS, DIM, DIM_V = 3, 2, 4


def schedules(size: int, route: str | Route, layout: str = "zigzag", window: int = -1) -> list[Schedule]:
    return [
        plan(
            layout_named(layout),
            route_named(route),
            BORDERS,
            BORDERS,
            rank,
            size,
            window=(window, 0),
        )
        for rank in range(size)
    ]


def stored(schedule: Schedule, rank: int) -> KV:
    """A rank's keys and values: of every token its position, head and dimension."""
    positions = torch.tensor(schedule.keys.positions(rank), dtype=torch.float64)
    head = torch.arange(HEADS)[None, :, None] / 10
    return KV(*(positions[:, None, None] + head + torch.arange(dim) / 100 for dim in (DIM, DIM_V)))


def own(schedule: Schedule, number: int = 0) -> KV:
    """What a rank holds in a pass: the keys differ by the number of the pass."""
    kv = stored(schedule, schedule.cp_rank)
    return KV(kv.k + 1000 * number, kv.v + 1000 * number)


def walk(transport: Transport, *, backward: bool) -> tuple[list[KV], KV | None]:
    """What a transport brings for every step, as the executor asks for it; every key's gradient is 1 + its hop."""
    seen = []
    for step, kv in transport:
        seen.append(KV(kv.k.clone(), kv.v.clone()))
        if backward:
            needed = torch.zeros(len(kv.k), 1, 1, dtype=torch.float64)
            for key_slice in step.key_slices:
                needed[key_slice.columns.start : key_slice.columns.stop] = 1 + step.hop
            transport.send_grads(step, KV(needed.expand_as(kv.k).clone(), 2 * needed.expand_as(kv.v)))
    return seen, transport.finish() if backward else None


def transports(comm: Threads, schedule: Schedule, kv: KV | None = None) -> list[Transport]:
    """All that can walk a schedule."""
    kv = kv or own(schedule)
    rings = [Ring(schedule, kv, comm)] if schedule.shifts else []
    return [Waves(schedule, kv, comm), OneSided(schedule, kv, ThreadSharedBuffers(comm)), *rings]


@pytest.mark.parametrize(("size", "route"), CASES)
def test_every_step_has_its_keys(size: int, route: str) -> None:
    for layout, window in product(LAYOUTS, (-1, 5)):
        plans = schedules(size, route, layout, window)

        def main(comm: Threads, plans: list[Schedule] = plans) -> None:
            schedule = plans[comm.rank]
            for transport in transports(comm, schedule):
                seen, _ = walk(transport, backward=False)
                for step, kv in zip(schedule.steps, seen, strict=True):
                    assert len(kv.k) == len(kv.v) >= schedule.buffer_length(step)
                    for key_slice in step.key_slices:
                        owned = stored(schedule, key_slice.source)
                        for mine, other in zip(kv, owned, strict=True):
                            rows, columns = key_slice.rows, key_slice.columns
                            assert torch.equal(mine[columns.start : columns.stop], other[rows.start : rows.stop])

        run(size, main, timeout=10)


@pytest.mark.parametrize(("size", "route"), CASES)
def test_gradients_come_home(size: int, route: str) -> None:
    """A key's gradient is the sum over all ranks and steps that used it."""
    for layout in LAYOUTS:
        plans = schedules(size, route, layout)
        expected = [torch.zeros(plan.key_length) for plan in plans]
        for schedule in plans:
            for step in schedule.steps:
                for key_slice in step.key_slices:
                    expected[key_slice.source][key_slice.rows.start : key_slice.rows.stop] += 1 + step.hop

        def main(comm: Threads, plans: list[Schedule] = plans) -> list[KV]:
            found = [walk(way, backward=True)[1] for way in transports(comm, plans[comm.rank])]
            return [grads for grads in found if grads]

        for want, (schedule, found) in zip(expected, zip(plans, run(size, main, timeout=10), strict=True), strict=True):
            for dk, dv in found:
                assert dk.shape == (schedule.key_length, HEADS, DIM)
                assert dv.shape == (schedule.key_length, HEADS, DIM_V)
                assert (dk == want[:, None, None]).all()
                assert (dv == 2 * want[:, None, None]).all()


def own_and_neighbour(cp_rank: int, cp_size: int) -> tuple[tuple[int, ...], ...]:
    """The neighbour's keys and one's own at once, then all others'."""
    distances = (1, 0), tuple(range(2, cp_size))
    return tuple(tuple((cp_rank - distance) % cp_size for distance in hop) for hop in distances if hop)


def own_first(cp_rank: int, cp_size: int) -> tuple[tuple[int, ...], ...]:
    """Everyone's keys at once, in another order on every rank."""
    return (tuple((cp_rank - distance) % cp_size for distance in range(cp_size)),)


@pytest.mark.parametrize("route", [own_and_neighbour, own_first])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_routes_of_ones_own(size: int, route: Route) -> None:
    """Sources may come in any order, one's own among them."""
    problem = Problem(BORDERS, window=(-1, 0))

    def main(comm: Threads) -> list[Part]:
        shared_buffers = ThreadSharedBuffers(comm)
        links = connect, lambda _, *asked: OneSided(*asked, shared_buffers)
        return [problem.solve_on(comm, "zigzag", route, head_groups=2, link=link) for link in links]

    for parts in zip(*run(size, main, timeout=10), strict=True):
        assert_exact(parts, problem.solve())


@pytest.mark.parametrize("route", ["waves(2)", "waves(3)", "gather"])
@pytest.mark.parametrize("head_groups", [1, 2])
def test_many_pieces_travel_as_few_boxes(monkeypatch: pytest.MonkeyPatch, route: str, head_groups: int) -> None:
    """Of thirty packed sequences a rank copies one box of keys and one of values from each other, and what comes out
    is true.
    """
    problem = Problem(tuple(accumulate(random.Random(0).choices(range(3, 20), k=30), initial=0)), window=(-1, 0))
    copied: list[int] = []

    def counted(moves: Sequence[Move]) -> None:
        copied.append(len(moves))
        copy(moves)

    monkeypatch.setattr(one_sided, "copy", counted)
    monkeypatch.setattr(windows_of, "copy", counted)

    def main(comm: Threads) -> Part:
        shared_buffers = ThreadSharedBuffers(comm)
        return problem.solve_on(
            comm, "zigzag", route, head_groups=head_groups, link=lambda _, *asked: OneSided(*asked, shared_buffers)
        )

    assert_exact(run(4, main, timeout=60), problem.solve())
    assert max(copied) == 2 * (3 if route != "waves(3)" else 2)


def test_one_pass_may_follow_another() -> None:
    plans = schedules(3, "ring")

    def main(comm: Threads) -> None:
        shared_buffers, asked = ThreadSharedBuffers(comm), (plans[comm.rank], own(plans[comm.rank]))
        for make in (lambda: Waves(*asked, comm), lambda: Ring(*asked, comm), lambda: OneSided(*asked, shared_buffers)):
            first, second = (walk(make(), backward=True)[1] for _ in range(2))
            assert first is not None and second is not None
            assert torch.equal(first.k, second.k)
            assert torch.equal(first.v, second.v)

    run(3, main, timeout=10)


class Late(ThreadSharedBuffers):
    """Windows on which ranks of odd number come late from every barrier."""

    def allocate(self, size: int) -> SharedBuffer:
        window = super().allocate(size)
        barrier, late = window.barrier, self._comm.rank % 2

        def slow() -> None:
            barrier()
            time.sleep(0.02 * late)

        window.barrier = slow  # type: ignore[method-assign]
        return window


@pytest.mark.parametrize(
    "heads", [[1, 2], [3, 1, 2, 1], [3, 3, 3]], ids=["groups of 1 and 2 heads", "groups of many sizes", "replayed"]
)
def test_keys_in_a_window_stay_until_all_have_read_them(heads: list[int]) -> None:
    """Passes lay their keys out across what a slow rank may still be reading, of other shapes or, replayed, the same.

    A CUDA graph of one pass does the same again and again, wherever the pass before it has put its keys.
    """
    plans = schedules(4, "gather")

    def main(comm: Threads) -> None:
        shared_buffers = Late(comm)
        shared_buffers.at_least(1 << 16)
        schedule = plans[comm.rank]
        passes = [(schedule, own(schedule, number).heads(slice(count))) for number, count in enumerate(heads)]
        found = [walk(OneSided(*each, shared_buffers), backward=False)[0] for each in passes]
        for each, seen in zip(passes, found, strict=True):
            expected, _ = walk(Waves(*each, comm), backward=False)
            for mine, other in zip(seen, expected, strict=True):
                assert torch.equal(mine.k, other.k)
                assert torch.equal(mine.v, other.v)

    run(4, main, timeout=10)


def pairs(cp_rank: int, cp_size: int) -> tuple[tuple[int, ...], ...]:
    """A route on which every second rank has its neighbour's keys at once, and the others only their own."""
    near = (cp_rank, cp_rank - 1)[: 1 + cp_rank % 2]
    return near, tuple(rank for rank in range(cp_size) if rank not in near)


def documents_on_pairs() -> list[Schedule]:
    """So that nobody needs the keys of the other pair, and every second rank nobody else's at all."""
    borders = (0, 8, 16)
    sharding = {"window": (-1, 0), "per_sequence": False}
    return [plan(layout_named("contiguous"), pairs, borders, borders, rank, 4, **sharding) for rank in range(4)]


@pytest.mark.parametrize(
    "plans",
    [documents_on_pairs(), *(schedules(4, route, "contiguous", window=3) for route in ROUTES)],
    ids=["pairs", *ROUTES],
)
def test_ranks_meet_as_often_as_each_other(plans: list[Schedule]) -> None:
    """Whether a rank fetches or lends anything or not: twice in a forward pass, three times in a backward pass.

    What all of a pass's messages are, small or not, they agree on as well.
    """

    def main(comm: Threads) -> list[tuple[int, bool]]:
        shared_buffers, met = ThreadSharedBuffers(comm), list[bool]()
        window = shared_buffers.at_least(1 << 16)
        exchange = window.exchange

        def counted(first: Sequence[Move], then: Sequence[Move], *, small: bool) -> None:
            met.append(small)
            exchange(first, then, small=small)

        window.exchange = counted  # type: ignore[method-assign]
        found = []
        for backward in (False, True):
            met.clear()
            schedule = plans[comm.rank]
            walk(OneSided(schedule, own(schedule), shared_buffers), backward=backward)
            found.append((len(met), all(met)))
        return found

    assert run(4, main, timeout=10) == [[(2, True), (3, True)]] * 4


@pytest.mark.parametrize("route", ["ring", "waves(2)", "gather"])
def test_ranks_may_find_gradients_in_other_dtypes(route: str) -> None:
    """Their kernels may differ, of which some round what they find and some do not."""
    plans = schedules(2, route)

    def main(comm: Threads) -> None:
        schedule = plans[comm.rank]
        dtype = torch.float32 if comm.rank else torch.bfloat16
        kv = KV(*(x.bfloat16() for x in stored(schedule, comm.rank)))
        sums = []
        for transport in transports(comm, schedule, kv):
            for step, keys in transport:
                found = KV(*(torch.zeros_like(x, dtype=dtype) for x in keys))
                for key_slice, x in product(step.key_slices, found):
                    x[key_slice.columns.start : key_slice.columns.stop] = 1 + step.hop
                transport.send_grads(step, found)
            sums.append(transport.finish())
        for first, other in product(sums[:1], sums[1:]):
            assert torch.equal(first.k, other.k) and torch.equal(first.v, other.v)
        assert sums[0].k.dtype == torch.float32 and sums[0].k.max() > 1

    run(2, main, timeout=10)


class Recorded(Communicator):
    """Another communicator, and a record of what was asked of it."""

    def __init__(self, inner: Communicator) -> None:
        self.inner, self.rank, self.size = inner, inner.rank, inner.size
        self.calls: list[tuple[str, torch.Size, torch.dtype]] = []
        self.peers: list[tuple[list[int], list[int]]] = []

    def send_recv(self, sends: Sequence[tuple[int, Tensor]], sources: Sequence[int], like: Tensor) -> Work:
        assert all(x.shape == like.shape and x.dtype == like.dtype for _, x in sends)
        assert self.rank not in [*sources, *(rank for rank, _ in sends)]
        return self._call("send_recv", like, [rank for rank, _ in sends], list(sources)) or self.inner.send_recv(
            sends, sources, like
        )

    def all_gather(self, x: Tensor) -> Work:
        return self._call("all_gather", x) or self.inner.all_gather(x)

    def reduce_scatter(self, x: Tensor) -> Work:
        return self._call("reduce_scatter", x) or self.inner.reduce_scatter(x)

    def all_to_all(self, x: Tensor) -> Work:
        return self._call("all_to_all", x) or self.inner.all_to_all(x)

    def _call(self, name: str, x: Tensor, destinations: Sequence[int] = (), sources: Sequence[int] = ()) -> None:
        self.calls.append((name, x.shape, x.dtype))
        self.peers.append((sorted(destinations), sorted(sources)))


def test_all_ranks_make_the_same_calls_in_the_same_order() -> None:
    """Over random problems: the same calls, shapes and dtypes on all ranks, and a receiver for every message."""
    rng, seen = random.Random(0), set[Any]()
    for _ in range(80):
        lengths = [rng.randint(0, 20) for _ in range(rng.randint(1, 4))]
        problem = Problem(
            (0, *accumulate(lengths)),
            window=rng.choice([(-1, 0), (-1, -1), (rng.randint(0, 9), 0)]),
            dtype=rng.choice([torch.float64, torch.bfloat16]),
            lse_gradient=False,
        )
        size = rng.choice([2, 3, 4, 6])
        route = rng.choice([route for route in ROUTES if size % 2 == 0 or not route.startswith("double")])
        layout, head_groups, per_sequence = rng.choice([*LAYOUTS]), rng.choice([1, 2]), rng.random() < 0.5

        def main(comm: Communicator) -> Recorded:
            recorded = Recorded(comm)
            problem.solve_on(recorded, layout, route, per_sequence=per_sequence, head_groups=head_groups)  # noqa: B023
            return recorded

        ranks = run(size, main, timeout=10)
        for one in ranks[1:]:
            assert one.calls == ranks[0].calls
        for number in range(len(ranks[0].calls)):
            sent = {(a, b) for a, one in enumerate(ranks) for b in one.peers[number][0]}
            asked = {(a, b) for b, one in enumerate(ranks) for a in one.peers[number][1]}
            assert sent == asked
        seen.update(name for name, _, _ in ranks[0].calls)
    assert seen > {"send_recv", "all_gather"}


class Idle:
    """A stream of a GPU that is none: what is asked of it is done at once."""

    def wait_stream(self, other: Idle) -> None: ...

    def wait_event(self, event: None) -> None: ...

    def record_event(self) -> None: ...


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches side by side, with what follows from each asked for as late as on a GPU."""
    streams_for, gpu = concurrent_launches.streams_for, torch.device("cuda")
    monkeypatch.setattr(concurrent_launches, "current", lambda device: Idle())
    monkeypatch.setattr(concurrent_launches, "_launch_streams", lambda main, rank: (Idle(), Idle()))
    monkeypatch.setattr(concurrent_launches, "On", lambda lane, main: nullcontext())
    monkeypatch.setattr(concurrent_launches, "streams_for", lambda schedule, device: streams_for(schedule, gpu))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_threads_that_compute_at_once_have_lanes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one is given memory there that another has let go of, and whose last reader it did not wait for."""
    asked = list[int]()
    monkeypatch.setattr(
        concurrent_launches, "_launch_streams", lambda main, rank: asked.append(rank) or (Idle(), Idle())
    )
    run(3, Problem((0, 24), window=(-1, 0)).solve_on, timeout=10)
    assert sorted(asked) == [0, 0, 1, 1, 2, 2]


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("layout", "size"), [("contiguous", 2), ("contiguous", 3), ("zigzag", 3)])
@pytest.mark.parametrize("route", ["ring", "waves", "gather"])
def test_ranks_with_one_launch_give_in_the_order_of_the_others(layout: str, size: int, route: str) -> None:
    """In contiguous shards the first rank has one, and others more: keys and gradients must not change places."""
    problem = Problem((0, 24), window=(-1, 0))

    def main(comm: Communicator) -> tuple[Recorded, Part]:
        recorded = Recorded(comm)
        return recorded, problem.solve_on(recorded, layout, route)

    ranks = run(size, main, timeout=10)
    assert all(recorded.calls == ranks[0][0].calls for recorded, _ in ranks)
    assert_exact([part for _, part in ranks], problem.solve())


def unequal(rank: int, size: int) -> tuple[tuple[int, ...], ...]:
    """Every second rank begins with the keys of the one before, too."""
    near = (rank, rank - 1)[: 1 + rank % 2]
    return near, tuple(other for other in range(size) if other not in near)


def early(rank: int, size: int) -> tuple[tuple[int, ...], ...]:
    """The last rank has everyone's keys at once, and nobody's on the second hop."""
    others = tuple(other for other in range(size) if other != rank)
    return ((rank, *others), ()) if rank == size - 1 else ((rank,), others)


@pytest.mark.parametrize(("route", "size"), [(unequal, 2), (unequal, 4), (early, 2), (early, 3)])
@pytest.mark.parametrize("one_sided", [False, True])
def test_ranks_may_meet_on_different_hops(route: Route, size: int, one_sided: bool) -> None:
    problem = Problem((0, 24), window=(-1, 0))
    verify([plan(layout_named("zigzag"), route, (0, 24), (0, 24), rank, size, window=(-1, 0)) for rank in range(size)])

    def main(comm: Communicator) -> Part:
        assert isinstance(comm, Threads)
        shared_buffers = ThreadSharedBuffers(comm)
        link = (lambda _, *asked: OneSided(*asked, shared_buffers)) if one_sided else connect
        return problem.solve_on(comm, "zigzag", route, link=link)

    assert_exact(run(size, main, timeout=10), problem.solve())


def test_a_pass_that_was_not_taken_to_its_end_leaves_nothing_behind() -> None:
    plans = schedules(3, "ring")

    def main(comm: Communicator) -> list[KV]:
        found, schedule = [], plans[comm.rank]
        for stop in (False, True, False):
            transport = Ring(schedule, own(schedule), comm)
            for step, keys in transport:
                transport.send_grads(step, KV(torch.ones_like(keys.k), torch.ones_like(keys.v)))
                if stop:
                    break
            if not stop:
                found.append(transport.finish())
        return found

    for first, again in run(3, main, timeout=10):
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


class Mute(Communicator):
    """A group of one rank that must not be asked for anything."""

    rank, size = 0, 1

    def send_recv(self, *_: object) -> Work:
        raise AssertionError("one rank has nobody to talk to")

    all_gather = reduce_scatter = all_to_all = shift = send_recv  # type: ignore[assignment]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("route", ["ring", "waves(2)", "gather", "double_ring(1)"])
def test_one_rank_communicates_nothing(layout: str, route: str) -> None:
    problem = Problem(BORDERS, window=(-1, 0), sinks=True, dropout_p=0.2)
    assert_exact([problem.solve_on(Mute(), layout, route, head_groups=2)], problem.solve())


def test_connect_picks() -> None:
    def kind(comm: Communicator, route: str) -> type[Transport]:
        schedule = schedules(comm.size, route)[comm.rank]
        return type(connect(comm, schedule, own(schedule)))

    for size, route, expected in (
        (1, "ring", LocalTransport),
        (1, "gather", LocalTransport),
        (3, "ring", Ring),
        (3, "waves(2)", Waves),
        (3, "gather", Waves),
        (4, "double_ring(2)", Waves),
        (2, "waves(2)", Ring),
        (4, "double_ring(1)", Ring),
        (3, "waves(3)", Ring),
    ):
        assert run(size, lambda comm, route=route: kind(comm, route)) == [expected] * size


class Reaching(Recorded):
    """A group whose GPUs can address each other's memory, played by threads."""

    def shared_buffers(self, device: torch.device) -> ThreadSharedBuffers | None:
        assert isinstance(self.inner, Threads)
        return ThreadSharedBuffers(self.inner) if device.type == "cuda" else None


def test_connect_is_one_sided_where_devices_reach_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = "cuda", "cpu"

    def kinds(comm: Communicator, route: str | Route) -> list[type[Transport]]:
        schedule = schedules(comm.size, route)[comm.rank]
        monkeypatch.setattr(OneSided, "__init__", lambda *_: None)  # What it would ask of a GPU is not here.
        monkeypatch.setattr(Waves, "_fetch", lambda *_: None)  # Nor are the keys that it would send.
        with FakeTensorMode():
            held = [KV(*2 * [torch.empty(8, 2, 4, device=device)]) for device in devices]
            return [type(connect(Reaching(comm), schedule, kv)) for kv in held]

    for size, route, expected in (
        (3, "ring", [OneSided, Ring]),
        (3, "gather", [OneSided, Waves]),
        (3, at_once, [Waves, Waves]),  # Nobody knows which of its rows the others need.
        (1, "ring", [LocalTransport, LocalTransport]),
    ):
        assert run(size, lambda comm, route=route: kinds(comm, route)) == [expected] * size


def test_connect_picks_alike_on_all_ranks() -> None:
    """With the hop between the nodes dead, the rest of a double ring is a ring's to every second rank."""
    plans = [
        plan(
            layout_named("contiguous"),
            route_named("double_ring(2)"),
            *2 * [(0, 8, 16)],
            rank,
            4,
            window=(-1, 0),
            per_sequence=False,
        )
        for rank in range(4)
    ]
    assert [len(schedule.steps) for schedule in plans] == [2] * 4
    assert run(4, lambda comm: type(connect(comm, plans[comm.rank], own(plans[comm.rank])))) == [Waves] * 4


def test_keys_and_gradients_may_have_communicators_of_their_own() -> None:
    def main(comm: Communicator, way: type[Ring | Waves], plans: list[Schedule]) -> tuple[int, int]:
        keys, gradients, schedule = Recorded(comm), Recorded(comm), plans[comm.rank]
        walk(way(schedule, own(schedule), keys, gradients), backward=True)
        return len(keys.calls), len(gradients.calls)

    for route, way, expected in (("ring", Ring, (2, 3)), ("gather", Waves, (1, 1))):
        plans = schedules(3, route)
        assert run(3, lambda comm, way=way, plans=plans: main(comm, way, plans)) == [expected] * 3
