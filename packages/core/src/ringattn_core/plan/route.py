"""Where keys come from, and when: a route says for every hop the ranks whose keys are present.

`ring` needs the least memory (one remote shard at a time); `waves(n)` computes on local keys first and then on the
others' in n - 1 larger steps, which fills a GPU better and merges less often; `gather` brings all at once (llama 3,
arXiv:2407.21783), after the rows that need local keys only; `double_ring` goes node by node (LoongTrain,
arXiv:2406.18485).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache, partial, update_wrapper

from ringattn_core.errors import lookup
from ringattn_core.plan.memo import shared
from ringattn_core.plan.tile import chunk

Hops = tuple[tuple[int, ...], ...]
Route = Callable[[int, int], Hops]
"""(cp_rank, cp_size) -> for every hop, the ranks whose keys are present. Each appears once, the rank itself on hop 0.

A rank may be alone on hop 0 and appear again on one later hop. Then hop 0 computes the query rows that need local keys
only, and the later hops all others, against all keys that they need; no row is computed in two parts, except for the
`num_early_rows` of `plan`.
"""


class BuiltInRoute:
    """A route of this module, with what is known of it for all ranks at once.

    distances: cp_size -> for every hop, how far before a rank its sources are, where that is the same for all ranks.
    whole_shards: ranks do not know each other's sequences, so every shard travels whole.
    """

    __name__: str

    def __init__(
        self,
        sources: Route,
        *,
        distances: Callable[[int], Sequence[range]] | None = None,
        whole_shards: bool = False,
    ) -> None:
        self._sources, self.distances, self.whole_shards = sources, distances, whole_shards
        update_wrapper(self, sources)

    def __call__(self, cp_rank: int, cp_size: int) -> Hops:
        return self._sources(cp_rank, cp_size)

    def __repr__(self) -> str:
        return self.__name__

    def __reduce__(self) -> tuple[Callable[[str], Route], tuple[str]]:
        # There is one object of each, by which plans are looked up, and pickles refer to it.
        return _of_name, (self.__name__,)


def travels_whole(route: str | Route) -> bool:
    """Does every shard travel whole on this route, because ranks do not know which rows the others need?"""
    return isinstance(route, BuiltInRoute) and route.whole_shards


@partial(BuiltInRoute, distances=lambda cp_size: [range(hop, hop + 1) for hop in range(cp_size)])
def ring(cp_rank: int, cp_size: int) -> Hops:
    """Neighbour after neighbour."""
    return tuple(((cp_rank - hop) % cp_size,) for hop in range(cp_size))


@shared
def waves(count: int) -> Route:
    """Local keys first, then all the others' in `count` - 1 waves.

    With a count of 1 everything comes at once, the local keys again as well: see `Route`.
    """
    if count < 1:
        raise ValueError(f"waves(count) takes a count of 1 or more, got {count}.")

    def distances(cp_size: int) -> Sequence[range]:
        if count == 1:
            return [range(1), range(cp_size)][:cp_size]  # A group of one rank has no other hop.
        later = min(count - 1, cp_size - 1)
        return [range(1), *(chunk(range(1, cp_size), wave, later) for wave in range(later))]

    def route(cp_rank: int, cp_size: int) -> Hops:
        if count == 1:
            return ((cp_rank,), tuple(range(cp_size)))[:cp_size]
        return tuple(tuple((cp_rank - distance) % cp_size for distance in wave) for wave in distances(cp_size))

    route.__name__ = f"waves({count})" if count > 1 else "gather"
    return BuiltInRoute(route, distances=distances)


gather = waves(1)
"""Everything at once, after the rows that need local keys only (llama 3, arXiv:2407.21783)."""


@partial(BuiltInRoute, whole_shards=True)
def at_once(cp_rank: int, cp_size: int) -> Hops:
    """All ranks' shards on one hop, whatever the mask: for ranks that do not know each other's sequences.

    Whole shards travel then, for no rank knows which of its rows the others need.
    """
    return (tuple(range(cp_size)),)


@shared
def double_ring(inner: int) -> Route:
    """Local keys, then those of the same node (`inner` consecutive ranks), then node after node."""
    if inner < 1:
        raise ValueError(f"double_ring(inner) takes the number of ranks of a node, 1 or more, got {inner}.")

    def route(cp_rank: int, cp_size: int) -> Hops:
        if cp_size % inner:
            raise ValueError(f"double_ring({inner}) needs a cp_size that {inner} divides, got {cp_size}.")
        count, home = cp_size // inner, cp_rank // inner
        nodes = [tuple(range(node * inner, (node + 1) * inner)) for node in range(count)]
        siblings = tuple(rank for rank in nodes[home] if rank != cp_rank)
        others = [nodes[(home - hop) % count] for hop in range(1, count)]
        return ((cp_rank,), *([siblings] if siblings else []), *others)

    route.__name__ = f"double_ring({inner})"
    return BuiltInRoute(route)


ROUTES: dict[str, Route] = {"ring": ring, "waves": waves(2), "gather": gather}
"""Routes by name."""
NUMBERED: dict[str, Callable[[int], Route]] = {"waves": waves, "double_ring": double_ring}
"""What makes a route of a number, by name: "waves(3)" is `waves(3)`."""


def route_named(name: str | Route) -> Route:
    """The route of this name: ring, waves, gather, "waves(3)" or "double_ring(8)"; a route itself is passed through.

    Raises ValueError with the nearest name.
    """
    return lookup(name, ROUTES, "route", NUMBERED) if isinstance(name, str) else name


def _of_name(name: str) -> Route:
    return lookup(name, ROUTES | {"at_once": at_once}, "route", NUMBERED)


class RouteTable(ABC):
    """A route of all ranks together."""

    shifts: list[bool]  # for every hop h: does it bring each rank the keys of the rank h before it?
    meets: list[bool]  # for every hop: are all ranks' keys present on every rank?
    again: list[bool]  # for every rank: do its local keys come again after hop 0?

    @abstractmethod
    def sources(self, rank: int) -> tuple[tuple[int, ...], ...]:
        """For every hop, the ranks whose keys are present on this one."""

    @abstractmethod
    def count(self, rank: int, hop: int) -> int:
        """How many sources a rank has on a hop."""

    @abstractmethod
    def destinations(self, rank: int, hop: int) -> tuple[int, ...]:
        """The ranks on which the keys of this one are present on a hop."""


class _Alike(RouteTable):
    """A route that is the same for all ranks, seen from each: it is known without asking it for every rank."""

    def __init__(self, route: Route, cp_size: int, distances: Sequence[range]) -> None:
        self._route, self._size, self._distances = route, cp_size, distances
        self.shifts = [distances == range(hop, hop + 1) for hop, distances in enumerate(self._distances)]
        self.meets = [len(distances) == cp_size for distances in self._distances]
        self.again = [any(0 in distances for distances in self._distances[1:])] * cp_size

    def sources(self, rank: int) -> tuple[tuple[int, ...], ...]:
        return self._route(rank, self._size)

    def count(self, rank: int, hop: int) -> int:
        return len(self._distances[hop])

    def destinations(self, rank: int, hop: int) -> tuple[int, ...]:
        return tuple(sorted((rank + distance) % self._size for distance in self._distances[hop]))


class _Each(RouteTable):
    """Any route, by the sources of every rank."""

    def __init__(self, route: Route, cp_size: int) -> None:
        self._sources = [route(rank, cp_size) for rank in range(cp_size)]
        for rank, hops in enumerate(self._sources):
            if met := {*range(cp_size)} ^ {owner for owners in hops for owner in owners}:
                raise ValueError(
                    f"A route gives rank {rank} of {cp_size} the sources {hops}, wrong about {sorted(met)}."
                )
        self._destinations = [[list[int]() for _ in hops] for hops in self._sources]
        self.shifts = [True for _ in self._sources[0]]
        for rank, hops in enumerate(self._sources):
            for hop, owners in enumerate(hops):
                self.shifts[hop] &= owners == ((rank - hop) % cp_size,)
                for owner in owners:
                    self._destinations[owner][hop].append(rank)
        self.meets = [all(len(hops[hop]) == cp_size for hops in self._sources) for hop in range(len(self.shifts))]
        self.again = [_comes_again(rank, hops) for rank, hops in enumerate(self._sources)]

    def sources(self, rank: int) -> tuple[tuple[int, ...], ...]:
        return self._sources[rank]

    def count(self, rank: int, hop: int) -> int:
        return len(self._sources[rank][hop])

    def destinations(self, rank: int, hop: int) -> tuple[int, ...]:
        return tuple(self._destinations[rank][hop])


@lru_cache(4)
def route_table(route: Route, cp_size: int) -> RouteTable:
    """Which keys are present where: what the plans of all ranks have in common.

    Raises ValueError where keys of some rank are never present on another, or where local keys come again in another
    way than `Route` allows.
    """
    if isinstance(route, BuiltInRoute) and route.distances:
        return _Alike(route, cp_size, route.distances(cp_size))
    return _Each(route, cp_size)


def _comes_again(rank: int, hops: tuple[tuple[int, ...], ...]) -> bool:
    """Do local keys come again after hop 0?"""
    own = [hop for hop, owners in enumerate(hops) if rank in owners]
    if len(own) > 1 and (hops[0] != (rank,) or len(own) > 2):
        raise ValueError(
            f"A route gives rank {rank} local keys on the hops {own}, with the sources {hops}: they come once, or "
            "alone on hop 0 and again on one later hop."
        )
    return len(own) > 1
