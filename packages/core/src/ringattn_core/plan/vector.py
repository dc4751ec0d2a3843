"""Vectors of whole numbers without NumPy: each is one Python integer that holds a number in every 64 bits.

To add two vectors of a thousand numbers is then one addition of two long integers, which takes a microsecond where a
thousand small ones take forty. Numbers are from 0 to 2**62, and so must all results be: no bit may reach the next
number, and the highest bit of each is free, for comparisons.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from functools import lru_cache

_BITS = 64


class Vector:
    """A number for each of `count` places.

    >>> lengths = Vector.of([5, 0, 12])
    >>> lengths, lengths.begins(), lengths.positive()
    (Vector([5, 0, 12]), Vector([0, 5, 5]), Vector([1, 0, 1]))
    >>> (lengths * 3) // 4, lengths.minimum(Vector.of([7, 7, 7]))
    (Vector([3, 0, 9]), Vector([5, 0, 7]))
    """

    __slots__ = ("_count", "_packed")

    def __init__(self, packed: int, count: int) -> None:
        self._packed, self._count = packed, count

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Vector:
        """These numbers."""
        column = numbers if isinstance(numbers, array) else array("q", numbers)
        return cls(int.from_bytes(memoryview(column).cast("B"), "little"), len(column))

    @classmethod
    def full(cls, number: int, count: int) -> Vector:
        """The same number in all places."""
        return cls(number * _ones(count), count)

    def array(self) -> array[int]:
        """The numbers."""
        return array("q", self._packed.to_bytes(self._count * _BITS // 8, "little"))

    def __repr__(self) -> str:
        return f"Vector({self.array().tolist()})"

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vector) and (self._packed, self._count) == (other._packed, other._count)

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Vector) -> Vector:
        return Vector(self._packed + other._packed, self._count)

    def __sub__(self, other: Vector) -> Vector:
        """No number may be smaller than what is taken from it."""
        return Vector(self._packed - other._packed, self._count)

    def __mul__(self, factor: int) -> Vector:
        return Vector(self._packed * factor, self._count)

    def __floordiv__(self, divisor: int) -> Vector:
        """Divide and round down. By a power of two it is a shift of all numbers at once."""
        shift = divisor.bit_length() - 1
        if divisor != 1 << shift:
            return Vector.of([number // divisor for number in self.array()])
        # What is shifted out of a number is in the highest bits of the one before.
        return Vector(self._packed >> shift & _ones(self._count) * ((1 << _BITS - shift) - 1), self._count)

    def __mod__(self, divisor: int) -> Vector:
        """The remainder of a division by a power of two."""
        return Vector(self._packed & _ones(self._count) * (divisor - 1), self._count)

    def begins(self) -> Vector:
        """The sum of the numbers before each: where parts of these lengths begin, one after the other."""
        sums, places = self._packed << _BITS, 1
        while places < self._count:
            sums += sums << places * _BITS
            places *= 2
        return Vector(sums & (1 << self._count * _BITS) - 1, self._count)

    def moved(self, first: int) -> Vector:
        """Each number in the next place, behind a first one; the last is gone."""
        return Vector(self._packed << _BITS & (1 << self._count * _BITS) - 1 | first, self._count)

    def positive(self) -> Vector:
        """1 where a number is greater than 0, and 0 elsewhere."""
        most = _ones(self._count) * ((1 << _BITS - 1) - 1)
        return Vector(self._packed + most >> _BITS - 1 & _ones(self._count), self._count)

    def where(self, flags: Vector, other: Vector) -> Vector:
        """These numbers where flags are 1, and the other ones where they are 0."""
        mask = (flags._packed << _BITS) - flags._packed
        return Vector((self._packed ^ other._packed) & mask ^ other._packed, self._count)

    def minimum(self, other: Vector) -> Vector:
        """The smaller number of each pair."""
        guard = _ones(self._count) << _BITS - 1
        larger = Vector((self._packed | guard) - other._packed >> _BITS - 1 & _ones(self._count), self._count)
        return other.where(larger, self)

    def differs(self, other: Vector) -> Vector:
        """1 where two numbers are not the same, and 0 elsewhere."""
        return Vector(self._packed ^ other._packed, self._count).positive()


@lru_cache(4)
def _ones(count: int) -> int:
    """1 in every place."""
    return int.from_bytes((b"\1" + bytes(_BITS // 8 - 1)) * count, "little")
