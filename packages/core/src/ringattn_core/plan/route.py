"""Where keys come from, and when: a route says for every hop the ranks whose keys are at hand.

`ring` needs the least memory (one foreign shard at a time); `waves(n)` computes on its own keys first and then on the
others' in n - 1 larger steps, which fills a GPU better and merges less often; `gather` is all at once (llama 3,
arXiv:2407.21783), behind those rows that need nobody else's keys; `double_ring` goes node by node (LoongTrain,
arXiv:2406.18485).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from weakref import WeakKeyDictionary

from ringattn_core.errors import lookup
from ringattn_core.plan.memo import shared
from ringattn_core.plan.tile import chunk

Route = Callable[[int, int], tuple[tuple[int, ...], ...]]
"""(cp_rank, cp_size) -> for every hop, the ranks whose keys are at hand. Each appears once, one's own on hop 0.

One's own may be alone on hop 0 and come again on one later hop. Then no row is computed in two parts on their account,
but for those that `plan` sends `num_early_rows`: hop 0 takes the query rows that need nobody else's keys, and the later
hops all others, against all that they need.
"""


def ring(cp_rank: int, cp_size: int) -> tuple[tuple[int, ...], ...]:
    """Neighbour after neighbour."""
    return tuple(((cp_rank - hop) % cp_size,) for hop in range(cp_size))


_distances = WeakKeyDictionary[Route, Callable[[int], Sequence[range]]]()
_distances[ring] = lambda cp_size: [range(hop, hop + 1) for hop in range(cp_size)]
# Of the routes that are alike for all ranks: for a number of ranks and every hop, how far before a rank its sources
# are. What all ranks have in common is then known without a look at each.


@shared
def waves(count: int) -> Route:
    """One's own keys first, then all the others' in `count` - 1 waves.

    With a count of 1 everything comes at once, one's own again as well: see `Route`.
    """
    if count < 1:
        raise ValueError(f"waves(count) takes a count of 1 or more, got {count}.")

    def distances(cp_size: int) -> Sequence[range]:
        if count == 1:
            return [range(1), range(cp_size)][:cp_size]  # Alone, there is no other hop.
        later = min(count - 1, cp_size - 1)
        return [range(1), *(chunk(range(1, cp_size), wave, later) for wave in range(later))]

    def route(cp_rank: int, cp_size: int) -> tuple[tuple[int, ...], ...]:
        if count == 1:
            return ((cp_rank,), tuple(range(cp_size)))[:cp_size]
        return tuple(tuple((cp_rank - distance) % cp_size for distance in wave) for wave in distances(cp_size))

    _distances[route] = distances
    route.__name__ = f"waves({count})" if count > 1 else "gather"
    return route


gather = waves(1)
"""Everything at once, behind those rows that need nobody else's keys (llama 3, arXiv:2407.21783)."""


def at_once(cp_rank: int, cp_size: int) -> tuple[tuple[int, ...], ...]:
    """Everyone's shards on one hop, whatever the mask: for ranks that do not know each other's sequences.

    Whole shards travel then, for nobody knows which rows of its own the others need.
    """
    return (tuple(range(cp_size)),)


@shared
def double_ring(inner: int) -> Route:
    """One's own keys, then those of the same node (`inner` ranks side by side), then node after node."""
    if inner < 1:
        raise ValueError(f"double_ring(inner) takes the number of ranks of a node, 1 or more, got {inner}.")

    def route(cp_rank: int, cp_size: int) -> tuple[tuple[int, ...], ...]:
        if cp_size % inner:
            raise ValueError(f"double_ring({inner}) needs a cp_size that {inner} divides, got {cp_size}.")
        count, home = cp_size // inner, cp_rank // inner
        nodes = [tuple(range(node * inner, (node + 1) * inner)) for node in range(count)]
        siblings = tuple(rank for rank in nodes[home] if rank != cp_rank)
        others = [nodes[(home - hop) % count] for hop in range(1, count)]
        return ((cp_rank,), *([siblings] if siblings else []), *others)

    route.__name__ = f"double_ring({inner})"
    return route


ROUTES: dict[str, Route] = {"ring": ring, "waves": waves(2), "gather": gather}
"""Routes by name."""
NUMBERED: dict[str, Callable[[int], Route]] = {"waves": waves, "double_ring": double_ring}
"""What makes a route of a number, by name: "waves(3)" is `waves(3)`."""


def route_named(name: str | Route) -> Route:
    """The route of this name: ring, waves, gather, "waves(3)" or "double_ring(8)"; a route itself is passed through.

    Raises ValueError with the nearest name.
    """
    return lookup(name, ROUTES, "route", NUMBERED) if isinstance(name, str) else name


class RouteTable(ABC):
    """A route of all ranks together."""

    shifts: list[bool]  # for every hop: does it bring each rank the keys of the one so many before?
    meets: list[bool]  # for every hop: has every rank everyone's keys at hand?
    again: list[bool]  # of every rank: do its own keys come again after hop 0?

    @abstractmethod
    def sources(self, rank: int) -> tuple[tuple[int, ...], ...]:
        """For every hop, the ranks whose keys are at hand of this one."""

    @abstractmethod
    def count(self, rank: int, hop: int) -> int:
        """How many sources a rank has on a hop."""

    @abstractmethod
    def destinations(self, rank: int, hop: int) -> tuple[int, ...]:
        """The ranks at whose hand the keys of this one are on a hop."""


class _Alike(RouteTable):
    """A route that is alike for all ranks, each in its place: nobody's has to be looked at."""

    def __init__(self, route: Route, cp_size: int) -> None:
        self._route, self._size, self._distances = route, cp_size, _distances[route](cp_size)
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
    """Any route, by what it says to every rank."""

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
    """Who meets whose keys: what the plans of all ranks have in common.

    Raises ValueError where a rank does not meet everyone's keys, or where its own come again, but not as a `Route` may
    have it.
    """
    return (_Alike if route in _distances else _Each)(route, cp_size)


def _comes_again(rank: int, hops: tuple[tuple[int, ...], ...]) -> bool:
    """Do a rank's own keys come again after hop 0?"""
    own = [hop for hop, owners in enumerate(hops) if rank in owners]
    if len(own) > 1 and (hops[0] != (rank,) or len(own) > 2):
        raise ValueError(
            f"A route gives rank {rank} its own keys on the hops {own}, with the sources {hops}: they come once, or "
            "alone on hop 0 and again on one later hop."
        )
    return len(own) > 1
