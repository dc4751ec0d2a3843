"""Routes: whose keys are at hand on which hop."""

from __future__ import annotations

import pickle
from copy import deepcopy
from functools import partial

import pytest

from ringattn_core.plan.route import (
    Route,
    at_once,
    double_ring,
    gather,
    ring,
    route_named,
    route_table,
    travels_whole,
    waves,
)


def test_a_ring_goes_from_neighbour_to_neighbour() -> None:
    assert ring(1, 4) == ((1,), (0,), (3,), (2,))


def test_waves_take_ones_own_keys_first_and_the_rest_in_equal_parts() -> None:
    assert waves(2)(1, 4) == ((1,), (0, 3, 2))
    assert waves(3)(0, 8) == ((0,), (7, 6, 5), (4, 3, 2, 1))


@pytest.mark.parametrize("route", [ring, gather, waves(3), double_ring(2), at_once], ids=str)
def test_a_built_in_route_is_one_object(route: Route) -> None:
    """Plans are looked up by it: copies and pickles are the same one."""
    assert pickle.loads(pickle.dumps(route)) is route and deepcopy(route) is route


def test_only_where_ranks_know_the_sequences_do_parts_of_shards_travel() -> None:
    assert travels_whole(at_once)
    assert not any(map(travels_whole, (ring, gather, waves(2), double_ring(2), "at_once", lambda rank, size: ())))


@pytest.mark.parametrize("route", [ring, waves(2), waves(3), gather], ids=str)
@pytest.mark.parametrize("cp_size", [1, 2, 5, 8])
def test_a_route_by_distances_is_the_same_as_by_asking_every_rank(route: Route, cp_size: int) -> None:
    quick, slow = route_table(route, cp_size), route_table(partial(route), cp_size)
    assert type(quick) is not type(slow)
    for field in ("shifts", "meets", "again"):
        assert getattr(quick, field) == getattr(slow, field)
    for rank in range(cp_size):
        assert quick.sources(rank) == slow.sources(rank)
        for hop in range(len(quick.shifts)):
            assert quick.destinations(rank, hop) == slow.destinations(rank, hop)
            assert quick.count(rank, hop) == slow.count(rank, hop)


def test_waves_are_never_empty() -> None:
    assert waves(9)(0, 3) == ring(0, 3)
    assert waves(4)(0, 1) == ((0,),)


def test_gather_has_everyone_at_once_behind_ones_own() -> None:
    assert gather(2, 4) == ((2,), (0, 1, 2, 3))
    assert gather(0, 1) == ((0,),)


def test_a_double_ring_goes_from_node_to_node() -> None:
    assert double_ring(2)(2, 6) == ((2,), (3,), (0, 1), (4, 5))
    assert double_ring(1)(1, 3) == ((1,), (0,), (2,))


@pytest.mark.parametrize("cp_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", ["ring", "waves", "waves(3)", "gather", "double_ring(1)"])
def test_oneself_comes_first_and_every_other_once(name: str, cp_size: int) -> None:
    route = route_named(name)
    hops = [route(rank, cp_size) for rank in range(cp_size)]
    for rank, (first, *later) in enumerate(hops):
        assert first == (rank,)
        others = sorted(source for hop in later for source in hop if source != rank)
        assert others == [source for source in range(cp_size) if source != rank]
    assert len({tuple(map(len, sources)) for sources in hops}) == 1, "every rank receives equally much on a hop"


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("ring", ring),
        ("waves", waves(2)),
        ("gather", gather),
        ("waves(1)", gather),
        ("waves(5)", waves(5)),
        ("double_ring(4)", double_ring(4)),
    ],
)
def test_route_named(name: str, route: Route) -> None:
    assert route_named(name) is route
    assert route_named(route) is route


def test_all_ranks_know_whose_own_keys_come_again() -> None:
    assert [route_table(route, 3).again for route in (ring, waves(2), gather)] == [[False] * 3, [False] * 3, [True] * 3]
    assert route_table(gather, 1).again == [False]
    assert route_table(gather, 2).shifts == [True, False]


@pytest.mark.parametrize("hops", [((0, 1), (0,)), ((1, 0), (0,)), ((0,), (0,), (0, 1)), ((1,), (0,), (0,))])
def test_ones_own_keys_come_again_only_where_they_were_alone(hops: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"gives rank 0 local keys on the hops .*: they come once, or alone on hop 0"):
        route_table(lambda rank, size: hops if rank == 0 else ((1,), (0,), ())[: len(hops)], 2)


@pytest.mark.parametrize(("name", "nearest"), [("rings", "ring"), ("wave", "waves"), ("double_ring", "double_ring(n)")])
def test_route_named_tells_the_nearest_name(name: str, nearest: str) -> None:
    with pytest.raises(ValueError) as error:
        route_named(name)
    assert f"no route {name!r}" in str(error.value)
    assert f"Did you mean {nearest!r}?" in str(error.value)


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="count of 1 or more, got 0"):
        waves(0)
    with pytest.raises(ValueError, match="1 or more, got 0"):
        double_ring(0)
    with pytest.raises(ValueError, match=r"double_ring\(3\) needs a cp_size that 3 divides, got 8"):
        double_ring(3)(0, 8)
