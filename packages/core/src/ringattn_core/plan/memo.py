"""Caches: results are kept while the object that they belong to lives, or until newer ones need the memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import update_wrapper, wraps
from itertools import count
from threading import Lock
from typing import Any, Generic, TypeVar, TypeVarTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

T = TypeVar("T")
Owner = TypeVar("Owner")
Key = TypeVarTuple("Key")


def by_owner(make: Callable[[Owner, *Key], T]) -> Callable[[Owner, *Key], T]:
    """Keep a result while the first argument lives; the result must not refer to it."""
    made: WeakKeyDictionary[Owner, dict[tuple[*Key], T]] = WeakKeyDictionary()

    @wraps(make)
    def get(owner: Owner, *key: *Key) -> T:
        known = made.get(owner)
        if known is None:
            known = made.setdefault(owner, {})
        if key not in known:
            known[key] = make(owner, *key)
        return known[key]

    return get


class Recent(Generic[T]):
    """A function that keeps its latest results: those that fit into `budget` bytes by `size`, and at least `least`."""

    def __init__(self, make: Callable[..., T], budget: int, size: Callable[[T], int], least: int) -> None:
        update_wrapper(self, make)
        self.__wrapped__ = make
        self._budget, self._size, self._least = budget, size, least
        self._made = OrderedDict[Hashable, tuple[T, int]]()  # with its size in bytes; the latest use comes last
        self._bytes, self._lock = 0, Lock()  # Ranks may be threads of one process.

    def __call__(self, *args: Hashable, **kwargs: Hashable) -> T:
        key = (args, tuple(kwargs.items()))
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key][0]
        result = self.__wrapped__(*args, **kwargs)
        with self._lock:
            if key not in self._made:
                self._made[key] = result, self._size(result)
                self._bytes += self._made[key][1]
            while len(self._made) > self._least and self._bytes > self._budget:
                self._bytes -= self._made.popitem(last=False)[1][1]
            return self._made[key][0]

    def cache_clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._made.clear()
            self._bytes = 0

    def cache_info(self) -> str:
        """How much is kept, in words."""
        return f"{len(self._made)} results of about {self._bytes} bytes"


def recent(budget: int, size: Callable[[Any], int], *, least: int = 1) -> Callable[[Callable[..., T]], Recent[T]]:
    """Keep the latest results of a function: see `Recent`."""
    return lambda make: Recent(make, budget, size, least)


class Shared(Generic[T]):
    """A function that returns the same object for equal arguments, while anything else holds it."""

    def __init__(self, make: Callable[..., T]) -> None:
        update_wrapper(self, make)
        self.__wrapped__ = make
        self._made = WeakValueDictionary[Hashable, T]()

    def __call__(self, *args: Hashable, **kwargs: Hashable) -> T:
        key = (args, tuple(kwargs.items()))
        result = self._made.get(key)
        return self._made.setdefault(key, self.__wrapped__(*args, **kwargs)) if result is None else result

    def cache_clear(self) -> None:
        """Forget everything."""
        self._made.clear()

    def cache_info(self) -> str:
        """How much is kept, in words."""
        return f"{len(self._made)} results that are in use"


shared = Shared
"""Equal arguments share one result: see `Shared`."""


class Numbered(Generic[T]):
    """Objects by their numbers, while they live: operators of compiled graphs take numbers, and no other objects."""

    def __init__(self) -> None:
        self._numbers, self._objects = count(), WeakValueDictionary[int, T]()

    def add(self, made: T) -> int:
        """A new number, by which the object is known from now on."""
        number = next(self._numbers)
        self._objects[number] = made
        return number

    def __getitem__(self, number: int) -> T:
        """The object. Raises RuntimeError if it is gone."""
        found = self._objects.get(number)
        if found is None:
            raise RuntimeError(
                "What a compiled forward pass was given is gone before its backward pass: keep the ContextParallel and "
                "the mask until then."
            )
        return found
