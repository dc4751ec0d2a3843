"""Sharded attention on real processes: the default group, subgroups, device meshes, and 16 bits."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from weakref import ref

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import processes
from problem import Part, Problem, assert_exact, assert_fair
from ringattn_comms.backends import torch_dist
from ringattn_comms.backends.symmetric import SymmetricSharedBuffers
from ringattn_comms.backends.torch_dist import TorchDist
from ringattn_comms.connect import communicator, connect
from ringattn_core import gather, plan, ring, zigzag
from ringattn_core.run.transport import KV

PACKED = (0, 11, 11, 13, 40)
CAUSAL = Problem(PACKED, window=(-1, 0))
PROBLEMS = {
    "causal, with all options": Problem(
        PACKED, window=(-1, 0), softcap=3.0, sinks=True, alibi="head", dropout_p=0.2, head_dim_v=6
    ),
    "a window": Problem(PACKED, window=(5, 2), num_heads=6, num_kv_heads=3),
    "cross attention": Problem((0, 6, 20), (0, 17, 23)),
    "more ranks than tokens": Problem((0, 1, 2), window=(-1, 0)),
    "no tokens at all": Problem((0, 0)),
}
WAYS = [("contiguous", "ring"), ("zigzag", "waves"), ("striped", "gather"), ("zigzag", "ring")]
NARROW = [
    Problem((0, 40, 96), window=(-1, 0), head_dim=32, head_dim_v=32, sinks=True, lse_gradient=False, dtype=dtype)
    for dtype in (torch.bfloat16, torch.float16)
]


def solve(problems: Sequence[Problem]) -> list[list[Part]]:
    """Every problem in every way on the default group."""
    comm = communicator(None)
    return [
        [problem.solve_on(comm, *way, head_groups=1 + index % 2) for index, way in enumerate(WAYS)]
        for problem in problems
    ]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_default_group(size: int) -> None:
    problems = [*PROBLEMS.values(), *NARROW]
    ranks = processes.run(size, solve, problems)
    for index, problem in enumerate(problems):
        for way in range(len(WAYS)):
            parts = [rank[index][way] for rank in ranks]
            if problem.dtype == torch.float64:
                assert_exact(parts, problem.solve())
            else:
                assert_fair(problem, parts)


def solve_in_groups() -> dict[str, Part]:
    """On ranks 0 and 2 and on ranks 1 and 3, at the same time; on the rows and the columns of a mesh; on a mesh."""
    rank = dist.get_rank()
    halves = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "cp"))
    groups = {
        "half": halves[rank % 2],
        "cp": mesh["cp"],
        "dp": mesh["dp"],
        "flat": init_device_mesh("cpu", (4,)),
        "reversed": dist.new_group([3, 1, 0]) if rank != 2 else dist.new_group([3, 1, 0]) and None,
    }
    return {
        name: CAUSAL.solve_on(communicator(group), "zigzag", route)
        for name, group in groups.items()
        if name != "reversed" or rank != 2
        for route in ("ring", "gather")
    }


def test_subgroups_and_meshes() -> None:
    ranks, truth = processes.run(4, solve_in_groups), CAUSAL.solve()
    for name, members in (
        ("half", [(0, 2), (1, 3)]),
        ("cp", [(0, 1), (2, 3)]),
        ("dp", [(0, 2), (1, 3)]),
        ("flat", [(0, 1, 2, 3)]),
        ("reversed", [(0, 1, 3)]),
    ):
        for group in members:
            assert_exact([ranks[rank][name] for rank in group], truth)


def pick() -> list[str]:
    """The transports for a group, a mesh of one dimension and None, by name."""
    groups = (None, dist.new_group([0, 1]), init_device_mesh("cpu", (2,)))
    schedules = [plan(zigzag, route, (0, 16), (0, 16), dist.get_rank(), 2) for route in (ring, gather)]
    kv = KV(*2 * [torch.zeros(8, 1, 4)])
    return [type(connect(group, schedule, kv)).__name__ for group in groups for schedule in schedules]


def test_connect_takes_groups_and_meshes() -> None:
    assert processes.run(2, pick) == [["Ring", "Waves"] * 3] * 2


def refuse() -> list[str]:
    """What is said about groups that do not do."""
    pair, said = dist.new_group([0, 1]), []
    for group in (pair, init_device_mesh("cpu", (3, 1), mesh_dim_names=("dp", "cp"))):
        try:
            communicator(group)
        except ValueError as error:
            said.append(str(error))
    return said


def test_groups_that_do_not_do() -> None:
    ranks = processes.run(3, refuse)
    for rank, said in enumerate(ranks):
        about_mesh = said[-1]
        assert "A device mesh of 2 dimensions ('dp', 'cp') was given where one dimension is needed" in about_mesh
        assert 'mesh["cp"]' in about_mesh
        assert len(said) == (2 if rank == 2 else 1)
    assert "This process (global rank 2) is not in the group that was given" in ranks[2][0]


@pytest.mark.parametrize("group", ["zigzag", [0, 1], 2], ids=str)
def test_what_is_no_group(group: object) -> None:
    """Said before anything else: whether there is a default group does not matter."""
    with pytest.raises(TypeError, match=r"A group must be a ProcessGroup, .*; got .*layout='zigzag'"):
        communicator(group)


def test_no_default_group() -> None:
    assert not dist.is_initialized()
    with pytest.raises(
        ValueError, match=r"no default process group: call torch\.distributed\.init_process_group first"
    ):
        communicator(None)


def test_a_default_group_that_comes_later_is_another_one() -> None:
    made: list[object] = []
    make = torch_dist._once(lambda group, fact: made.append(fact) or len(made))
    for life in range(2):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        try:
            found = [make(group, fact) for fact in "ab" for group in (None, None, dist.group.WORLD)]
        finally:
            dist.destroy_process_group()
        assert found == [2 * life + 1] * 3 + [2 * life + 2] * 3
    assert made == ["a", "b"] * 2


def test_a_group_that_was_destroyed_goes_with_all_that_was_made_for_it() -> None:
    """Its shared buffers, which take as much memory as all shards, and how its ranks agree."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        buffers = torch_dist._once(lambda group: SymmetricSharedBuffers(group, torch.device("cuda", 0)))
        for made_once in (buffers, torch_dist._agreement):
            group = dist.new_group([0])
            made_once(group)
            gone = ref(group)
            dist.destroy_process_group(group)
            del group
            gc.collect()
            assert gone() is None
    finally:
        dist.destroy_process_group()


def test_devices_that_a_group_has_no_backend_for() -> None:
    dist.init_process_group("cpu:gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        with pytest.raises(
            ValueError, match=r"Tensors on meta cannot travel in this group, whose backends are 'cpu:gloo'"
        ):
            communicator(None).second_communicator(torch.device("meta"))
    finally:
        dist.destroy_process_group()


def said() -> list[object]:
    comm = communicator(None)
    return comm.all_gather_object({"rank": comm.rank, "text": "x" * comm.rank})


def test_ranks_hear_what_each_of_them_says() -> None:
    assert processes.run(2, said) == [[{"rank": 0, "text": ""}, {"rank": 1, "text": "x"}]] * 2


def second_groups() -> list[list[int]]:
    """The global ranks of a group's twin, as it is made by the members alone."""
    gpu, real = torch.device("cuda"), dist.new_group
    assert all(
        comm.second_communicator(torch.device(kind)) is comm
        for comm in [communicator(None)]
        for kind in ("cpu", "cuda")
    )
    pair = dist.new_group([0, 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "get_backend_config", lambda group: "cpu:gloo,cuda:nccl")
        patch.setattr(dist, "new_group", lambda ranks, backend, **options: real(ranks, backend="gloo", **options))
        if dist.get_rank() == 1:
            return []
        comm = communicator(pair)
        second = comm.second_communicator(gpu)
        assert isinstance(second, TorchDist) and isinstance(comm, TorchDist)
        assert second.group is not comm.group and comm.second_communicator(gpu).group is second.group  # type: ignore[attr-defined]
        assert (second.rank, second.size) == (comm.rank, comm.size) and comm.second_communicator(
            torch.device("cpu")
        ) is comm
        assert second.all_gather(torch.tensor([comm.rank])).wait().flatten().tolist() == [0, 1]
        return [dist.get_process_group_ranks(second.group)]


def test_gradients_on_nccl_have_a_group_of_their_own() -> None:
    """Played on gloo, which has none itself: only the members of a group make it, once."""
    assert processes.run(3, second_groups) == [[[0, 2]], [], [[0, 2]]]
