"""torch.compile keeps attention in one graph, forward and backward, with the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import ringattn
from ringattn import masks
from ringattn.masks import Mask
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator, SingleRank

CP = ringattn.ContextParallel(SingleRank())


def inputs(batch: int = 2, tokens: int = 24) -> list[Tensor]:
    shapes = [(batch, tokens, 4, 8), (batch, tokens, 2, 8), (batch, tokens, 2, 8), (4,)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def loss(cp: ringattn.ContextParallel, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    out, lse = ringattn.attention(
        q * 1.5, k, v, cp=cp, causal=True, window_size=(10, 0), softcap=3.0, sinks=sinks, return_lse=True
    )
    return out.square().sum() + lse.sin().sum()


@pytest.mark.parametrize("borders", [None, [0, 5, 24]])
def test_one_graph(borders: list[int] | None) -> None:
    cp, tensors = CP.with_cu_seqlens(borders), inputs()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(cp, *tensors), tensors)
    want = torch.autograd.grad(loss(cp, *tensors), tensors)
    for mine, other in zip(got, want, strict=True):
        torch.testing.assert_close(mine, other)


def test_other_lengths_need_no_other_code() -> None:
    """A new ContextParallel for every batch, as for packed sequences, is no reason to compile again for ever."""
    compiled = torch.compile(loss, fullgraph=True, backend="eager", dynamic=True)
    torch._dynamo.utils.counters.clear()
    for tokens in (8, 12, 16, 20):
        cp, tensors = CP.with_cu_seqlens([0, 3, tokens]), inputs(1, tokens)
        torch.testing.assert_close(compiled(cp, *tensors), loss(cp, *tensors))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_masks() -> None:
    """A mask of the call, one for each row, and that of the ContextParallel; another one needs no other code."""
    made = [masks.prefix(24, 9), masks.causal(24) | masks.two_way([range(3, 8)], 24), masks.chunked(24, 7)]
    *tensors, sinks = inputs()

    def call(cp: ringattn.ContextParallel, mask: Mask | list[Mask] | None, *tensors: Tensor) -> Tensor:
        return ringattn.attention(*tensors, cp=cp, mask=mask, sinks=sinks).sin().sum()

    for asked in (
        [(CP, mask) for mask in made],
        [(CP, [mask, made[0]]) for mask in made],
        [(CP.with_mask(mask), None) for mask in made],
    ):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        for cp, mask in asked:
            got = torch.autograd.grad(compiled(cp, mask, *tensors), tensors)
            want = torch.autograd.grad(call(cp, mask, *tensors), tensors)
            for mine, other in zip(got, want, strict=True):
                torch.testing.assert_close(mine, other)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_what_is_gone_before_the_backward_pass_is_named() -> None:
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    out = compiled(CP.with_cu_seqlens([0, 5, 24]), *inputs())
    with pytest.raises(RuntimeError, match="is gone before its backward pass: keep the ContextParallel and the mask"):
        out.backward()


def test_lengths_in_a_list() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        return ringattn.attention(q, k, v, cp=CP, cu_seqlens=lengths)

    *tensors, _ = inputs(1)
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*tensors, [0, 7, 24]), call(*tensors, [0, 7, 24]))


@pytest.mark.parametrize("mask", [None, masks.prefix(24, 9)], ids=["causal", "mask"])
def test_dropout_is_the_same_in_both_passes(mask: Mask | None) -> None:
    """out is linear in v, so <out, dout> = <v, dv> holds only if backward has the forward's mask."""
    q, k, v, _ = inputs()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ringattn.attention(q, k, v, cp=CP, causal=mask is None, mask=mask, dropout_p=0.5)

    out = torch.compile(call, fullgraph=True, backend="aot_eager")(q, k, v)
    dout = torch.randn_like(out)
    (dv,) = torch.autograd.grad(out, v, dout)
    torch.testing.assert_close((out * dout).sum(), (v * dv).sum())


def test_the_operator_is_well_made() -> None:
    assert callable(ringattn.attention)  # whose module makes the operator
    tensors = inputs()
    asked = (CP.number, True, -1, -1, 0.0, 0.3, 0.0, False, True)
    mask = masks.prefix(24, 9)
    for lengths in ((None, None), ([0, 7, 24], None)):
        torch.library.opcheck(torch.ops.ringattn.attention, (*tensors, None, *asked, *lengths))
    under_mask = (CP.number, False, *asked[2:], None, None, True, [mask.number])
    torch.library.opcheck(torch.ops.ringattn.attention, (*tensors, None, *under_mask))


def test_a_rank_whose_gradients_come_in_one_message_returns_them_apart() -> None:
    """dk and dv of a ring lie side by side; where there is no token, or one of one head, they are contiguous too."""
    lengths = [0, 1, 1]  # of two sequences, of which contiguous shards of the stream give rank 0 nothing

    def main(comm: Communicator) -> list[Tensor]:
        cp = ringattn.ContextParallel(comm, "contiguous", "ring", per_sequence=False)
        tokens = cp.with_cu_seqlens(lengths).division(1).length(comm.rank)
        q, k, v, dout = (torch.ones(tokens, 1, 4, dtype=torch.float64) for _ in range(4))
        asked = cp.number, True, -1, -1, 0.0, 0.5, 0.0, False, False, lengths, None
        out, lse, seed = torch.ops.ringattn.attention(q, k, v, None, None, *asked)
        return torch.ops.ringattn.attention_backward(dout, None, out, lse, seed, q, k, v, None, None, *asked)

    assert [len(dv) for _, _, dv in run(2, main, timeout=20)] == [0, 1]


def test_a_graph_breaks_where_sequences_are_divided() -> None:
    """The planner is not traced: there is a graph before what is kept out of it, one behind it, and the reason."""

    def call(x: Tensor, lengths: Tensor) -> Tensor:
        q = CP.shard(x.sin())
        return ringattn.attention(q, q, q, cp=CP, cu_seqlens=lengths).cos()

    x, lengths = torch.randn(1, 24, 2, 8), torch.tensor([0, 7, 24])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = CompileCounter()
    compiled = torch.compile(call, backend=graphs)
    for _ in range(2):
        torch.testing.assert_close(compiled(x, lengths), call(x, lengths))
    assert graphs.frame_count >= 2 and graphs.op_count <= 4
    reasons = torch._dynamo.utils.counters["graph_break"]
    assert reasons and all("ringattn plans outside of graphs" in reason for reason in reasons)
