"""`ring_flash_attn.utils` and its neighbours: what others build rings of their own with (30)."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import processes
from ringattn.compat.ring_flash_attn import triton_utils, utils, zigzag_ring_flash_attn_varlen


def test_helpers() -> None:
    def example(a: int, b: int = 2, softcap: float = 9.0) -> None: ...

    assert utils.get_default_args(example) == {"a": None, "b": 2, "softcap": 0.0}
    operator = torch.library.custom_op(
        "ringattn_tests::example",
        lambda x, scale=3.0: x.clone(),
        mutates_args=(),
        schema="(Tensor x, float scale=3.0) -> Tensor",
    )
    assert utils.get_default_args(operator) == {"x": None, "scale": 3.0}
    cu_seqlens = torch.tensor([0, 4, 10])
    packed = torch.randn(10, 2, 1)
    padded = utils.unflatten_varlen_lse(packed, cu_seqlens, 6)
    assert padded.shape == (2, 2, 6)
    torch.testing.assert_close(utils.flatten_varlen_lse(padded, cu_seqlens), packed[..., 0].T)
    for name in ("flatten_varlen_lse", "unflatten_varlen_lse"):
        assert getattr(triton_utils, name) is getattr(utils, name)
    half = zigzag_ring_flash_attn_varlen.get_half_index
    assert half(torch.tensor([0, 6]), front=True) == slice(0, 3) and half(torch.tensor([0, 6]), front=False) == slice(
        3, 6
    )
    for front, places in ((True, [0, 1, 4, 5, 6]), (False, [2, 3, 7, 8, 9])):
        mask = half(cu_seqlens, front=front)
        assert isinstance(mask, Tensor) and mask.nonzero().flatten().tolist() == places


def test_update_out_and_lse() -> None:
    scores, values = torch.randn(2, 3, 5, 8, dtype=torch.float32), torch.randn(2, 8, 3, 4)
    blocks = [(slice(0, 3)), slice(3, 8)]

    def block(part: slice) -> tuple[Tensor, Tensor]:
        weights = scores[..., part].softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, values[:, part]), scores[..., part].logsumexp(-1)

    out, lse = None, None
    for part in blocks:
        out, lse = utils.update_out_and_lse(out, lse, *block(part))
    assert lse is not None
    expected_out, expected_lse = block(slice(0, 8))
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(lse.squeeze(-1).transpose(1, 2), expected_lse)
    with pytest.raises(RuntimeError, match="should not pass slice_"):
        utils.update_out_and_lse(None, None, *block(slice(0, 8)), slice_=(slice(None), slice(0, 2)))
    far = utils.update_out_and_lse(out, lse, *block(slice(0, 8)), slice_=(slice(None), slice(0, 5)))
    torch.testing.assert_close(far[1], lse)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_update_out_and_lse_with_rows_that_are_not_finite(odd: float) -> None:
    """A row of one block whose lse is NaN or +inf is NaN, before or after another; one of -inf has no key there."""
    out, finite = torch.ones(1, 3, 1, 4), torch.zeros(1, 1, 3)
    other = finite.clone()
    other[..., 1] = odd
    for blocks in ([(out, finite), (5 * out, other)], [(5 * out, other), (out, finite)]):
        sums: tuple[Tensor | None, Tensor | None] = None, None
        for block in blocks:
            sums = utils.update_out_and_lse(*sums, *block)
        found, lse = sums
        assert found is not None and lse is not None
        assert found[0, ::2].eq(3.0).all() and torch.equal(lse[0, ::2, 0, 0], torch.full((2,), 2.0).log())
        assert found[0, 1].eq(1.0).all() if odd == -torch.inf else found[0, 1].isnan().all()
        assert lse[0, 1].eq(0.0).all() if odd == -torch.inf else not lse[0, 1].isfinite().any()


def test_communication() -> None:
    for found in processes.run(3, communication):
        assert found == {"k": 0.0, "v": 0.0, "gathered": 0.0, "in a group": 0.0}


def communication() -> dict[str, float]:
    """A ring and an all-gather, as prime-rl and others build theirs."""
    rank, comm = dist.get_rank(), utils.RingComm(None)
    with pytest.raises(RuntimeError, match="before commit"):
        comm.wait()
    buffers = torch.empty(2), torch.empty(3)
    k, v = comm.send_recv_kv(torch.full((2,), float(rank)), torch.full((3,), rank + 10.0), *buffers)
    assert k is buffers[0] and v is buffers[1]
    with pytest.raises(RuntimeError, match="twice"):
        comm.commit()
    comm.wait()
    gathered, gather = torch.empty(6, 2), utils.AllGatherComm()
    gather.all_gather(gathered, torch.full((2, 2), float(rank)))
    gather.wait()
    # In a group whose ranks are not those of the world, the neighbours are the group's.
    group = dist.new_group([0, 2])
    received = torch.zeros(1)
    if rank != 1:
        pair = utils.RingComm(group)
        assert (pair.rank, pair.world_size, pair.send_rank, pair.recv_rank) == (rank // 2, 2, 2 - rank, 2 - rank)
        received = pair.send_recv(torch.tensor([float(rank)]), torch.empty(1))
        pair.commit()
        pair.wait()
        received -= 2 - rank
    before = float((rank - 1) % 3)
    expected = torch.tensor([0.0, 0, 1, 1, 2, 2])[:, None].expand(6, 2)
    return {
        "k": (k - before).abs().max().item(),
        "v": (v - before - 10).abs().max().item(),
        "gathered": (gathered - expected).abs().max().item(),
        "in a group": received.abs().item(),
    }
