"""`ContextParallel`: how a sequence is spread over a group of ranks, and the tensors of a model with it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor

from ringattn import agree
from ringattn.lengths import Lengths, read, sequence_positions
from ringattn.mask_rows import Masks, check_length, read_masks, tokens
from ringattn.no_compile import no_compile
from ringattn.prepared import Prepared
from ringattn.sharding import divided
from ringattn.tensors import check_tensors
from ringattn.unshard import unshard
from ringattn_comms.communicator import Communicator
from ringattn_comms.connect import Group, communicator
from ringattn_core.errors import lookup
from ringattn_core.kernels import choose
from ringattn_core.plan.layout import Layout, Sharding, layout_named
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_layout import layout_for
from ringattn_core.plan.memo import Numbered
from ringattn_core.plan.route import NUMBERED, ROUTES, Route
from ringattn_core.run.index import stream_index

Tensors = tuple[Tensor, ...]
CONTEXTS: Numbered[ContextParallel] = Numbered()
"""Every one by its number."""


@dataclass(frozen=True, eq=False)
class ContextParallel:
    """A group of ranks that share one sequence.

    group: a ProcessGroup, a one-dimensional DeviceMesh (`mesh["cp"]`), or None for all processes.
    layout: "zigzag" (equal work under a causal mask), "balanced" (for packed sequences: equal work, most of them whole
        on one rank), "windowed(4096)" (equal work under a causal window of 4,096 tokens), "contiguous", "striped", or
        a layout function.
    route: "ring" (least memory), "waves" (fewest, largest kernel launches), "gather", "waves(3)", "double_ring(8)", a
        route function, or "auto": for each pass the one that is predicted to be the fastest on GPUs, else "waves".
    cu_seqlens: global borders of packed sequences, as list or tensor; None is one sequence that divides
        evenly among the ranks. For one that does not, say [0, length].
    per_sequence: the layout divides each packed sequence separately; else the whole stream, as "balanced" always does.
    mask: which keys each query sees, for all calls of `attention` with it that give none (`ringattn.masks`): one mask
        for all rows of a batch, or a list of one for each. It says the length of the sequence too.
    head_groups: the number of groups of kv heads in which keys travel: more take less memory, and more messages.
    kernel: the name of a kernel; None chooses.

    Raises ValueError for an unknown layout, route or kernel (with the nearest name) or bad borders, and TypeError for a
    layout or route that is neither a name nor a function, or for something that is no mask. On first use: TypeError for
    an object that is no group, and ValueError for a group without this process, a mesh of several dimensions, None
    before torch.distributed is initialized, or a layout function that does not give every token to exactly one rank.
    """

    group: Group = None
    layout: str | Layout = "zigzag"
    route: str | Route = "auto"
    cu_seqlens: Lengths | None = None
    per_sequence: bool = True
    head_groups: int = 1
    kernel: str | None = None
    mask: Masks | None = None
    number: int = field(init=False, repr=False)

    @no_compile
    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", layout_named(self.layout))
        if isinstance(self.route, str):
            object.__setattr__(self, "route", lookup(self.route, {"auto": "auto", **ROUTES}, "route", NUMBERED))
        for kind, function in (("layout", self.layout), ("route", self.route)):
            if not callable(function) and function != "auto":
                raise TypeError(f"{kind} must be a name or a function, got {function!r}.")
        if self.cu_seqlens is not None:
            object.__setattr__(self, "cu_seqlens", read(self.cu_seqlens))
        if self.mask is not None and not isinstance(self.mask, Mask):
            object.__setattr__(self, "mask", read_masks(self.mask))
        if self.head_groups not in range(1, 1 << 20):  # neither 0 nor "2"
            raise ValueError(f"head_groups must be a whole number, 1 or more, got {self.head_groups!r}.")
        if self.kernel is not None:
            lookup(self.kernel, choose.KERNELS, "kernel")
        object.__setattr__(self, "number", CONTEXTS.add(self))

    def __reduce__(self) -> tuple[object, ...]:
        # A copy, also in another process, gets a number there.
        return ContextParallel, tuple(getattr(self, each.name) for each in fields(self) if each.init)

    @property
    def communicator(self) -> Communicator:
        """This rank's end of the group. Raises RuntimeError if the group has been destroyed since the first use."""
        return alive(self._communicator)

    @cached_property
    def _communicator(self) -> Communicator:
        return communicator(self.group)

    @cached_property
    def prepared(self) -> Prepared:
        """The last calls of `attention` that were prepared for it."""
        return Prepared()

    @property
    def cp_rank(self) -> int:
        """This rank's number in the group."""
        return self.communicator.rank

    @property
    def cp_size(self) -> int:
        """How many ranks hold the sequence."""
        return self.communicator.size

    def with_cu_seqlens(self, cu_seqlens: Lengths | None) -> ContextParallel:
        """A copy for sequences of other lengths: make one for each batch, and use it in all layers."""
        return replace(self, cu_seqlens=cu_seqlens)

    def with_mask(self, mask: Masks | None) -> ContextParallel:
        """A copy for another mask: make one for each batch, and use it in all layers."""
        return replace(self, mask=mask)

    @property
    def masks(self) -> tuple[Mask, ...] | None:
        """`mask` as a tuple."""
        return read_masks(self.mask)

    @property
    def borders(self) -> Lengths | None:
        """`cu_seqlens`, or those of the one sequence of the mask; None where neither says how long it is."""
        return (0, tokens(self.masks)) if self.masks and self.cu_seqlens is None else self.cu_seqlens

    @cached_property
    def token_layout(self) -> Layout:
        """The layout by which tokens are shared: "balanced" is even to the work of `mask`, if there is one."""
        assert callable(self.layout), "the name was looked up when this was made"
        return layout_for(self.layout, self.masks) if self.masks else self.layout

    @no_compile
    def division(self, length: int) -> Sharding:
        """Which rank holds which of `length` tokens. Raises ValueError if `cu_seqlens` or `mask` has another length."""
        check_length(self.masks, length)
        return divided(self.token_layout, self.borders, length, self.cp_size, self.per_sequence)

    @overload
    def shard(self, tensor: Tensor, /, *, dim: int | None = None) -> Tensor: ...

    @overload
    def shard(self, first: Tensor, second: Tensor, /, *others: Tensor, dim: int | None = None) -> Tensors: ...

    @no_compile
    def shard(self, *tensors: Tensor, dim: int | None = None) -> Any:
        """This rank's share of whole tensors along `dim`: one tensor for one, a tuple for several.

        Any shapes, dtypes and devices; all ranks pass the same whole tensors. Differentiable. Communicates nothing, but
        with RINGATTN_CHECK=1 all ranks call it together and compare a hash of what they are given.
        dim: the dimension of the tokens; None is the second one, as in (batch, tokens) and (batch, tokens, heads,
            head_dim). A tensor of three dimensions may be (tokens, heads, head_dim), so state it for those.

        Raises ValueError for lengths that contradict `cu_seqlens`, or that do not divide evenly without it, for tensors
        without that dimension, and where the dimension is in doubt; TypeError for an argument that is no tensor.
        """
        with agree.telling(lambda: self.communicator) if agree.checked() else nullcontext():
            dim = self._token_dim(tensors, dim)
            index = [stream_index(self.division(x.shape[dim]), self.cp_rank, x.device) for x in tensors]
        if agree.checked():
            agree.compare_shards(self.communicator, tensors)
        shards = tuple(x.index_select(dim, rows) for x, rows in zip(tensors, index, strict=True))
        return shards[0] if len(shards) == 1 else shards

    @overload
    def unshard(self, tensor: Tensor, /, *, dim: int | None = None) -> Tensor: ...

    @overload
    def unshard(self, first: Tensor, second: Tensor, /, *others: Tensor, dim: int | None = None) -> Tensors: ...

    @no_compile
    def unshard(self, *tensors: Tensor, dim: int | None = None) -> Any:
        """The whole tensors from every rank's shares: the inverse of `shard`, on every rank.

        Any dtype, on the device that the group communicates on; shapes differ between ranks only along `dim`, which has
        the same meaning as in `shard`.
        Its gradient is the sum of all ranks' gradients of the whole, cut to this rank's share: exact where the loss is
        the sum of the ranks' losses, and cp_size times too large where each computes the same loss from the whole.
        Raises ValueError if a share has another length than `shard` gives this rank.
        """
        with agree.telling(lambda: self.communicator):
            dim = self._token_dim(tensors, dim)
        whole = tuple(self._unshard(x, dim) for x in tensors)
        return whole[0] if len(whole) == 1 else whole

    @no_compile
    def position_ids(self, length: int, device: torch.device | str | None = None) -> Tensor:
        """The positions of this rank's tokens in their sequences, for rotary embeddings: (1, local tokens) int64.

        length: tokens of the whole sequence. device: of the result; None is the CPU. Raises ValueError as `shard` does.
        """
        sharding = self.division(length)
        positions = sequence_positions(sharding.cu_seqlens)[stream_index(sharding, self.cp_rank, torch.device("cpu"))]
        return positions.to(device)[None]

    @no_compile
    def shift_labels(self, labels: Tensor, dim: int = 1, ignore_index: int = -100) -> Tensor:
        """Every token's label is the next token's: shift the whole labels, before `shard`.

        labels: whole, of any shape and dtype, with tokens along `dim`. A shard's last target is the first token of
        another rank's, so a shift of shards would lose it. The last token of every packed sequence gets `ignore_index`.
        Returns the same shape. Raises ValueError as `shard` does.
        """
        sharding = self.division(labels.shape[self._token_dim((labels,), dim)])
        shifted = labels.roll(-1, dims=dim)
        last = torch.tensor(sharding.cu_seqlens[1:], device=labels.device) - 1
        return shifted.index_fill(dim, last[last >= 0], ignore_index)

    def _token_dim(self, given: tuple[Tensor, ...], dim: int | None) -> int:
        """The dimension of the tokens in all these tensors: `dim`, or the second one. Raises if it is in doubt."""
        check_tensors("Tensors go in one by one, as in cp.shard(q, k, v)", *given)
        for x in given:
            # With cu_seqlens the length of the dimension would not match theirs if it were another one.
            if dim is None and x.dim() == 3 and self.borders is None:
                raise ValueError(
                    f"A tensor of shape {tuple(x.shape)} may be (batch, tokens, hidden), for which say dim=1, or "
                    "(tokens, heads, head_dim), for which say dim=0."
                )
            if not -x.dim() <= (1 if dim is None else dim) < x.dim():
                raise ValueError(f"There is no dimension {dim or 1} in a tensor of shape {tuple(x.shape)}: say dim=.")
        return 1 if dim is None else dim

    def _unshard(self, x: Tensor, dim: int) -> Tensor:
        with agree.telling(lambda: self.communicator):
            length = x.shape[dim] * self.cp_size if self.borders is None else read(self.borders)[-1]
            sharding = self.division(length)
            if x.shape[dim] != sharding.length(self.cp_rank):
                raise ValueError(
                    f"Rank {self.cp_rank} holds {sharding.length(self.cp_rank)} of {length} tokens, but the tensor to "
                    f"unshard has {x.shape[dim]} along dimension {dim}."
                )
        return unshard(x.movedim(dim, 0), sharding, self.communicator).movedim(0, dim)


def alive(comm: Communicator) -> Communicator:
    """The communicator, unless its group has been destroyed: then RuntimeError."""
    if not comm.alive:
        raise RuntimeError(
            f"The group of {comm.size} ranks that this ContextParallel was first used with has been destroyed: make "
            "another one for the group that there is now (and call ringattn.hf.parallelize again)."
        )
    return comm
