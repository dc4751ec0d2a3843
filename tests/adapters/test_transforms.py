"""What other parts of PyTorch make of `attention`: torch.func, checkpoints that select, fake and other tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import processes
from adapters.comms import Mute, Recorded
from adapters.sharded import attend_on, draw, rows_of
from ringattn import ContextParallel, UnsupportedError, attention
from ringattn.tensors import distance
from ringattn_comms.backends.threads import run
from ringattn_comms.communicator import Communicator

PACKED = [0, 5, 5, 6, 20, 31]


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return draw(16)[:3]


def test_torch_func() -> None:
    """vjp and grad are backward(), on every rank; so is the adjoint of unshard."""
    whole = draw(31, ())
    rows = rows_of(ContextParallel(cu_seqlens=PACKED), 31, 3)

    def main(comm: Communicator) -> float:
        cp, own = ContextParallel(comm, cu_seqlens=PACKED), rows[comm.rank]

        def attend(q: Tensor, k: Tensor, v: Tensor, _: Any = None) -> tuple[Tensor, Tensor]:
            found: tuple[Tensor, Tensor] = attention(q, k, v, cp=cp, causal=True, return_lse=True)
            return found

        (q, k, v, dout), dlse = (x[own] for x in whole[:4]), whole.dlse[:, own]
        expected = attend_on(comm, attend, whole, own, own)
        outputs, pull = torch.func.vjp(attend, q, k, v)

        def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out, lse = attend(q, k, v)
            return (out * dout).sum() + (lse * dlse).sum()

        grads = torch.func.grad(loss, argnums=(0, 1, 2))(q, k, v)
        found, wanted = [*outputs, *pull((dout, dlse)), *grads], [*expected, *expected[2:]]
        gathered = torch.func.grad(lambda x: (cp.unshard(x, dim=0) * whole.q).sum())(q)
        pairs = [*zip(found, wanted, strict=True), (gathered, 3 * whole.q[own])]
        return max(distance(one, other) for one, other in pairs)

    assert max(run(3, main)) < 1e-12


def test_what_torch_func_cannot_have() -> None:
    q, k, v = inputs()

    def attend(q: Tensor) -> Tensor:
        out: Tensor = attention(q, k, v)
        return out

    forward, mapped = "no forward-mode derivative: take torch.func.vjp", "vmap: q, k and v take a batch dimension"
    for call, message in (
        (lambda: torch.func.jvp(attend, (q,), (q,)), forward),
        (lambda: torch.func.vmap(attend)(torch.stack([q, q])), mapped),
        (lambda: torch.func.jacrev(lambda q: attend(q).sum(dim=(0, 1, 3)))(q), mapped),
    ):
        with pytest.raises(UnsupportedError, match=message):
            call()
    with forward_ad.dual_level(), pytest.raises(UnsupportedError, match=forward):
        attend(forward_ad.make_dual(q, q))
    twice = torch.func.grad(lambda q: torch.func.grad(lambda q: attend(q).sum())(q).sum())
    with pytest.raises(RuntimeError, match="cannot be differentiated: it has a first derivative only"):
        twice(q)


def test_fake_tensors() -> None:
    """Shapes and dtypes of both passes, without a message: what memory is planned by."""
    cp = ContextParallel(Mute(0, 2), cu_seqlens=[0, 5, 32])
    with FakeTensorMode():
        q, kv = torch.randn(16, 4, 8, requires_grad=True), torch.randn(16, 2, 8)
        out, lse = attention(q, kv, kv, cp=cp, causal=True, return_lse=True)
        (dq,) = torch.autograd.grad(out.sum(), q)
        assert isinstance(out, FakeTensor) and out.shape == dq.shape == q.shape and lse.shape == (4, 16)
        with pytest.raises(TypeError, match=r"cu_seqlens is a FakeTensor, which has no numbers.*pass a list"):
            attention(q, kv, kv, cp=cp, cu_seqlens=torch.tensor([0, 5, 32]))


def test_nested_tensors() -> None:
    nested = torch.nested.nested_tensor([torch.randn(n, 2, 8) for n in (3, 4)], layout=torch.jagged)
    for call in (lambda: attention(nested, nested, nested), lambda: ContextParallel(Mute(0, 2)).shard(nested)):
        with pytest.raises(
            TypeError, match=r"got NestedTensor.*end to end, x.values\(\), .* cu_seqlens, x.offsets\(\)"
        ):
            call()


def test_distributed_tensors() -> None:
    assert processes.run(2, distributed) == ["", ""]


def distributed() -> str:
    whole, mesh = inputs(), init_device_mesh("cpu", (2,))
    given, cp = [distribute_tensor(x, mesh, [Shard(1)]) for x in whole], ContextParallel(layout="contiguous")
    for call in (lambda: attention(*given, cp=cp), lambda: cp.shard(given[0]), lambda: cp.unshard(given[0])):
        with pytest.raises(TypeError, match=r"got DTensor.*cp.shard\(x.full_tensor\(\)\), or x.to_local\(\) where"):
            call()
    # What the message advises, both ways.
    expected, found = attention(*cp.shard(*whole), cp=cp), attention(*(x.to_local() for x in given), cp=cp)
    return "" if torch.equal(found, expected) else "the advice is wrong"


def saved(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep the outputs of attention, and compute everything else anew."""
    keep = getattr(op, "namespace", "") == "ringattn"
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


SELECTIVE = partial(create_selective_checkpoint_contexts, saved)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_a_checkpoint_that_keeps_attention_sends_no_keys_again(
    dropout_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads share one generator, so that the order in which they draw from it would decide.
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(1234))
    whole = draw(32)
    rows = rows_of(ContextParallel(), 32, 2)

    def main(comm: Communicator) -> tuple[list[int], list[Tensor]]:
        messages: list[Any] = []
        cp = ContextParallel(Recorded(comm, messages), route="ring")
        counts, gradients = [], []
        for context in ({}, {"context_fn": SELECTIVE}, None):
            q, k, v = (x[:, rows[comm.rank]].requires_grad_() for x in whole[:3])
            block: Callable[..., Tensor] = partial(_block, cp=cp, dropout_p=dropout_p)
            messages.clear()
            if context is None:
                out = block(q, k, v)
            else:
                out = checkpoint(block, q, k, v, use_reentrant=False, preserve_rng_state=False, **context)
            out.sum().backward()
            counts.append(len(messages))
            gradients.append(torch.cat([x.grad.flatten() for x in (q, k, v) if x.grad is not None]))
        return counts, gradients

    for (again, kept, plain), gradients in run(2, main):
        assert again > kept == plain > 0
        for found in gradients:
            torch.testing.assert_close(found, gradients[0])


def _block(q: Tensor, k: Tensor, v: Tensor, cp: ContextParallel, dropout_p: float) -> Tensor:
    out: Tensor = attention(q * 1.5, k, v, cp=cp, causal=True, dropout_p=dropout_p)
    return out.square()
