"""Errors that teach: what was given, what was expected, what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class UnsupportedError(ValueError):
    """No available kernel, backend or transport supports what was asked; the message says why."""


def lookup(name: str, table: Mapping[str, T], kind: str, makers: Mapping[str, Callable[[int], T]] | None = None) -> T:
    """`table[name]`, or for "maker(8)" what this maker makes of 8, or a ValueError with the nearest name."""
    makers = makers or {}
    call = re.fullmatch(r"(\w+)\((\d+)\)", name)
    if call and call[1] in makers:
        return makers[call[1]](int(call[2]))
    if name in table:
        return table[name]
    names = [*table, *(f"{maker}(n)" for maker in makers)]
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    number = ", n being a number such as 8" if makers else ""
    raise ValueError(f"There is no {kind} {name!r}; there are {', '.join(map(repr, names))}{number}.{hint}")


def check_cu_seqlens(cu_seqlens: Sequence[int], name: str = "cu_seqlens") -> None:
    """Raise ValueError unless these are cumulative lengths: starting at 0, never decreasing, two entries or more."""
    if len(cu_seqlens) < 2 or cu_seqlens[0] != 0:
        raise ValueError(
            f"{name} must start at 0 and have one entry more than there are sequences, got {_short(cu_seqlens)}. "
            "It holds cumulative lengths: for sequences of 3 and 5 tokens it is [0, 3, 8]."
        )
    for index in range(1, len(cu_seqlens)):
        if cu_seqlens[index] < cu_seqlens[index - 1]:
            raise ValueError(
                f"{name} must never decrease, but entry {index} is {cu_seqlens[index]} after {cu_seqlens[index - 1]}. "
                "It holds cumulative lengths, not the lengths themselves: take their cumulative sum with a 0 in front."
            )


def check_ranks_and_sequences(
    cp_rank: int, cp_size: int, queries: Sequence[int], keys: Sequence[int], names: tuple[str, str]
) -> None:
    """Raise ValueError unless both borders have as many sequences, and the rank is one of the group's."""
    if len(queries) != len(keys):
        raise ValueError(
            f"{names[0]} has {len(queries) - 1} sequences and {names[1]} has {len(keys) - 1}: every sequence of "
            "queries needs its sequence of keys, of no tokens if need be."
        )
    if not 0 <= cp_rank < cp_size:
        raise ValueError(f"cp_rank must be from 0 to cp_size - 1 = {cp_size - 1}, got {cp_rank}.")


def _short(values: Sequence[int]) -> str:
    return str(list(values)) if len(values) <= 8 else f"[{', '.join(map(str, values[:8]))}, … {len(values)} entries]"
