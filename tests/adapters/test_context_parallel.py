"""`ContextParallel`: whole tensors to shards and back, with their positions, labels and gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from adapters.comms import Mute
from ringattn import masks
from ringattn.call import CallSpec
from ringattn.context_parallel import CONTEXTS, ContextParallel
from ringattn.lengths import Borders
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator, SingleRank
from ringattn_core.plan.layout import Sharding, contiguous, striped, zigzag
from ringattn_core.plan.route import gather, ring, waves

PACKED = [0, 5, 5, 6, 20, 31]

layouts = pytest.mark.parametrize("layout", ["zigzag", "contiguous", "striped"])


def test_names_and_functions() -> None:
    """Names are looked up when it is made, "auto" when shapes are known; two that say the same are still two."""
    cp = ContextParallel(SingleRank())
    assert cp.layout is zigzag and cp.route == "auto" and cp.cu_seqlens is None
    assert ContextParallel(SingleRank(), "striped", "ring").layout is striped
    assert ContextParallel(SingleRank(), contiguous, gather).route is gather
    assert ContextParallel(SingleRank(), route="ring").route is ring
    assert cp != ContextParallel(cp.group) and len({cp, cp, ContextParallel(cp.group)}) == 2
    packed = cp.with_cu_seqlens(torch.tensor(PACKED))
    assert packed.cu_seqlens == tuple(PACKED) and packed.layout is cp.layout and packed.group is cp.group
    assert isinstance(packed.cu_seqlens, Borders) and packed.with_cu_seqlens(None).cu_seqlens is None


def test_auto_is_two_waves_where_there_is_nothing_to_predict_from() -> None:
    cp, x = ContextParallel(SingleRank()), torch.zeros(1, 8, 2, 4)
    request = CallSpec(cp, True, (-1, -1), 0.0, 0.5, 0.0, False, False)
    call = request.plan(x, x, x, None, None, 0)
    assert call.forward_pass.schedule.route is call.backward_pass.schedule.route is waves(2)


def test_each_pass_has_its_plan_unless_its_masks_have_to_be_found_again() -> None:
    """A gather begins with some rows in its forward pass; the masks of dropout belong to launches."""
    x = torch.zeros(1, 2048, 1, 4)

    def passes(route: str, dropout_p: float) -> list[list[int]]:
        cp = ContextParallel(Mute(1, 2), route=route, kernel="reference")
        call = CallSpec(cp, True, (-1, -1), 0.0, 0.5, dropout_p, False, False).plan(x, x, x, None, None, 0)
        both = (call.forward_pass.schedule, call.backward_pass.schedule)
        assert (both[0] is both[1]) == (route == "ring" or dropout_p > 0)
        return [[len(step.launches) for step in schedule.steps] for schedule in both]

    assert passes("gather", 0.0) == [[1, 2], [0, 1]]
    assert passes("gather", 0.5) == [[0, 1], [0, 1]]
    assert passes("ring", 0.0) == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("contiguous", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("zigzag", [[0, 1, 6, 7], [2, 3, 4, 5]]),
        ("striped", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ],
)
def test_who_holds_what(layout: str, expected: list[list[int]]) -> None:
    for rank in range(2):
        cp = ContextParallel(Mute(rank, 2), layout)
        assert cp.shard(torch.arange(8), dim=0).tolist() == expected[rank]
        assert cp.position_ids(8).tolist() == [expected[rank]]
        assert (cp.cp_rank, cp.cp_size) == (rank, 2)


@layouts
@pytest.mark.parametrize("per_sequence", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("cu_seqlens", [None, [0, 17], [0, 2], PACKED], ids=str)
def test_there_and_back(layout: str, per_sequence: bool, size: int, cu_seqlens: Sequence[int] | None) -> None:
    """Any tensors along any dimension come back whole on every rank; lengths need not divide, if they are said."""
    length = cu_seqlens[-1] if cu_seqlens else 4 * size
    x, y, z = torch.randn(2, length, 3), torch.arange(length), torch.randn(3, 2, length) > 0

    def main(comm: Communicator) -> list[Tensor]:
        cp = ContextParallel(comm, layout, cu_seqlens=cu_seqlens, per_sequence=per_sequence)
        own, own_y, own_z = cp.shard(x, dim=1), cp.shard(y, dim=0), cp.shard(z, dim=-1)
        assert own.shape[1] == own_y.shape[0] == own_z.shape[2] == cp.division(length).length(comm.rank)
        assert torch.equal(cp.unshard(own, dim=1), x) and torch.equal(cp.unshard(own_z, dim=-1), z)
        first, second = cp.unshard(own, own_y[None], dim=1)
        assert torch.equal(first, x) and torch.equal(second[0], y)
        several = cp.shard(x, y[None], dim=1)
        assert isinstance(several, tuple) and torch.equal(several[0], own) and torch.equal(several[1][0], own_y)
        return [own_y, cp.position_ids(length)]

    held, positions = zip(*run(size, main), strict=True)
    assert sorted(torch.cat(held).tolist()) == list(range(length))
    starts = torch.tensor([max(b for b in cu_seqlens or [0] if b <= i) for i in range(length)])
    for own, found in zip(held, positions, strict=True):
        assert found.shape == (1, len(own)) and found.dtype == torch.int64
        assert torch.equal(found[0], own - starts[own])


@layouts
@pytest.mark.parametrize("cu_seqlens", [[0, 17], PACKED], ids=str)
def test_gradient_of_unshard(layout: str, cu_seqlens: Sequence[int]) -> None:
    """The ranks' gradients of the whole are added up and cut; none of them may be differentiated again."""
    x = torch.randn(2, cu_seqlens[-1], 3, dtype=torch.float64)
    weights = torch.randn(3, *x.shape, dtype=torch.float64)

    def main(comm: Communicator) -> None:
        cp = ContextParallel(comm, layout, cu_seqlens=cu_seqlens)
        own = cp.shard(x).requires_grad_()
        weight = weights[comm.rank].clone().requires_grad_()
        (grad,) = torch.autograd.grad(cp.unshard(own), own, weight, create_graph=True)
        assert (grad - cp.shard(weights.sum(dim=0))).abs().max() < 1e-12
        with pytest.raises(RuntimeError, match="differentiate twice"):
            grad.sum().backward()

    run(3, main)


def test_the_shares_of_all_ranks_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often tensors of a batch are put together, forward and backward; a rank checks its part each time."""
    counted, length = list[int](), Sharding.length
    monkeypatch.setattr(Sharding, "length", lambda self, rank: counted.append(rank) or length(self, rank))
    cp, calls = ContextParallel(SingleRank(), cu_seqlens=[0, 3, 23]), 4
    for _ in range(calls):
        cp.unshard(torch.zeros(1, 23, requires_grad=True)).sum().backward()
    assert len(counted) == calls + 1


def test_gradient_of_shard() -> None:
    """That of an index: what this rank's share is made of."""
    x = torch.randn(1, 8, 2, requires_grad=True)
    cp = ContextParallel(Mute(1, 2))
    cp.shard(x, dim=1).sum().backward()
    assert x.grad is not None
    assert x.grad[0, :, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_after_inference() -> None:
    """What a first call under inference_mode has left behind can be part of a backward pass."""
    cp = ContextParallel(Mute(0, 2), "striped", cu_seqlens=[0, 3, 14])
    with torch.inference_mode():
        cp.shard(torch.randn(1, 14))
    x = torch.randn(1, 14, requires_grad=True)
    cp.shard(x).sum().backward()
    assert x.grad is not None and x.grad.sum() == 8


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_shift_labels(dim: int) -> None:
    """Every token's label is the next one's; the last of each sequence has none, and the shift crosses ranks."""
    cp = ContextParallel(Mute(0, 2), cu_seqlens=[0, 0, 3, 3, 8])
    labels = torch.arange(8).view([8 if at == dim % 2 else 1 for at in range(2)])
    shifted = cp.shift_labels(labels, dim=dim)
    assert shifted.flatten().tolist() == [1, 2, -100, 4, 5, 6, 7, -100]
    assert cp.shift_labels(labels, dim=dim, ignore_index=-1).flatten()[-1] == -1
    assert labels.flatten().tolist() == list(range(8)), "the labels that were given are left as they are"


@layouts
def test_labels_of_shards_are_next_tokens(layout: str) -> None:
    """Shifting before sharding loses no target at the borders of ranks."""
    tokens = torch.randint(100, (2, 31), generator=torch.Generator().manual_seed(0))
    for rank in range(3):
        cp = ContextParallel(Mute(rank, 3), layout, cu_seqlens=PACKED)
        labels, at = cp.shard(cp.shift_labels(tokens)), cp.shard(torch.arange(31), dim=0)
        for place, position in enumerate(at.tolist()):
            last = position + 1 in PACKED
            expected = [-100, -100] if last else tokens[:, position + 1].tolist()
            assert labels[:, place].tolist() == expected


def test_devices() -> None:
    assert ContextParallel(Mute(0, 2)).position_ids(8, device="meta").device.type == "meta"


def test_lengths_that_contradict() -> None:
    cp = ContextParallel(Mute(0, 2), cu_seqlens=[0, 9])
    with pytest.raises(ValueError, match="cu_seqlens ends at 9, but the tensor to shard has 8 tokens"):
        cp.shard(torch.zeros(1, 8))
    with pytest.raises(
        ValueError, match="Rank 0 holds 5 of 9 tokens, but the tensor to unshard has 4 along dimension 1"
    ):
        cp.unshard(torch.zeros(1, 4))


def test_what_cannot_be_sharded() -> None:
    cp, x = ContextParallel(SingleRank()), torch.zeros(2, 8)
    for call in (cp.shard, cp.unshard):
        with pytest.raises(TypeError, match=r"one by one, as in cp.shard\(q, k, v\), got list"):
            call([x, x])
        with pytest.raises(ValueError, match=r"There is no dimension 9 in a tensor of shape \(2, 8\)"):
            call(x, dim=9)


def test_a_copy_has_its_number() -> None:
    """By which compiled code finds it; so it does not find another one in the process where a pickle is read."""
    cp = ContextParallel(None, "balanced", "ring", mask=masks.prefix(8, 3), head_groups=2)
    for copied in (pickle.loads(pickle.dumps(cp)), copy.copy(cp), copy.deepcopy(cp)):
        assert CONTEXTS[copied.number] is copied and CONTEXTS[cp.number] is cp
        assert repr(copied) == repr(cp) and copied.mask == cp.mask and copied.layout is cp.layout
