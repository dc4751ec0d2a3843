"""Cumulative sequence lengths as tuples; a tensor is read when it changes, and not once in each layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from operator import index
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ringattn.no_compile import no_compile
from ringattn_core.errors import check_cu_seqlens

Lengths = Sequence[int] | Tensor

_WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


class Borders(tuple[int, ...]):
    """Cumulative lengths that have been checked. Every layer looks up plans by them, so the hash is computed once."""

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash


class _Seen(NamedTuple):
    """A tensor that was read, and its state at that time."""

    tensor: ref[Tensor]
    state: Tensor | tuple[int, int]  # on a CPU a copy, elsewhere its address and version
    borders: Borders

    def holds(self, tensor: Tensor) -> bool:
        """Does this tensor still hold the same borders?"""
        if self.tensor() is not tensor:
            return False
        return torch.equal(self.state, tensor) if isinstance(self.state, Tensor) else self.state == _version(tensor)


_read: dict[int, _Seen] = {}  # by id, as long as the tensor exists


@no_compile
def read(cu_seqlens: Lengths, name: str = "cu_seqlens") -> Borders:
    """The borders as a tuple; a tensor is read again when it has changed.

    On a CPU values are compared, because NumPy and `.data` change a tensor without a new version. To read a tensor on a
    GPU the host waits for the device, so it is read once for each version that PyTorch counts: changes there by
    `.data`, DLPack or other libraries' kernels go unnoticed. Pass a new tensor, or a list.

    Raises TypeError unless it is a one-dimensional sequence of whole numbers, ValueError unless they are cumulative.
    """
    if isinstance(cu_seqlens, Borders):
        return cu_seqlens
    if not isinstance(cu_seqlens, Tensor):
        return _checked(cu_seqlens, name)
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype not in _WHOLE:
        raise TypeError(
            f"{name} must be a one-dimensional tensor of whole numbers, got {cu_seqlens.dtype} of shape "
            f"{tuple(cu_seqlens.shape)}."
        )
    if isinstance(cu_seqlens, FakeTensor):
        raise TypeError(f"{name} is a FakeTensor, which has no numbers, and these decide what is planned: pass a list.")
    if cu_seqlens.is_inference() and not cu_seqlens.is_cpu:
        return _checked(cu_seqlens.tolist(), name)  # An inference tensor has no version.
    seen = _read.get(id(cu_seqlens))
    if seen and seen.holds(cu_seqlens):
        return seen.borders
    borders = _checked(cu_seqlens.tolist(), name)
    _remember(cu_seqlens, borders)
    return borders


def read_both(
    cu_seqlens: Lengths | None, cu_seqlens_k: Lengths | None, tokens: int, tokens_k: int
) -> tuple[Borders, Borders]:
    """The borders of the queries' and the keys' sequences; without any, one sequence of `tokens` and `tokens_k`."""
    if cu_seqlens is None:
        if cu_seqlens_k is not None:
            raise ValueError(
                "cu_seqlens_k was given without cu_seqlens: say the borders of the queries' sequences too."
            )
        return Borders((0, tokens)), Borders((0, tokens_k))
    borders = read(cu_seqlens)
    borders_k = borders if cu_seqlens_k is None else read(cu_seqlens_k, "cu_seqlens_k")
    if len(borders) != len(borders_k):
        raise ValueError(
            f"cu_seqlens are the borders of {len(borders) - 1} sequences and cu_seqlens_k of {len(borders_k) - 1}: "
            "every sequence of queries needs a sequence of keys, which may have no tokens."
        )
    return borders, borders_k


@no_compile
def written(borders: Iterable[int], like: Tensor) -> Tensor:
    """The borders as a tensor of the dtype and on the device of `like`; `read` need not wait for it."""
    checked = _checked(borders, "cu_seqlens")
    with torch.inference_mode(False):
        tensor = torch.tensor(checked, dtype=like.dtype, device=like.device)
    _remember(tensor, checked)
    return tensor


@lru_cache(16)
def scaled(borders: Borders, factor: int) -> Borders:
    """The borders where every sequence is `factor` times as long."""
    return Borders(border * factor for border in borders)


@lru_cache(16)
def repeated(borders: Borders, batch: int) -> Borders:
    """The borders of `batch` rows with these borders each, end to end."""
    if batch == 0:
        return scaled(borders, 0)
    total = borders[-1]
    return Borders((0, *(row * total + border for row in range(batch) for border in borders[1:])))


def sequence_positions(borders: Sequence[int]) -> Tensor:
    """Every token's position in its sequence: (total,) int64."""
    return torch.cat([torch.arange(stop - start) for start, stop in pairwise(borders)])


def _checked(values: Iterable[int], name: str) -> Borders:
    try:
        borders = Borders(map(index, values))
    except TypeError:
        raise TypeError(
            f"{name} must be a list or a one-dimensional tensor of whole numbers, got {_short(values)}."
        ) from None
    check_cu_seqlens(borders, name)
    return borders


def _remember(tensor: Tensor, borders: Borders) -> None:
    key, state = id(tensor), tensor.detach().clone() if tensor.is_cpu else _version(tensor)
    _read[key] = _Seen(ref(tensor, lambda _: _read.pop(key, None)), state, borders)


def _version(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor._version


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
