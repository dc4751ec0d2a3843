"""Ranks that fall out of step, on real processes: every rank is told, by an error that names the rank and what differs.

One launch plays all faults that ranks recover from, one after the other: after each, a call that is alike on all ranks
has to be right again.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import processes
import ringattn
from ringattn import ContextParallel, attention, masks

SIZE, TOKENS = 3, 48
ODD = SIZE - 1  # the rank that does something else
CP = ContextParallel()
_rng = torch.Generator().manual_seed(0)
WHOLE = [torch.randn(1, TOKENS, heads, 8, generator=_rng, dtype=torch.float64) for heads in (4, 2, 2)]


def shares(cp: ContextParallel, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [x.clone().requires_grad_() for x in cp.shard(*(x.to(dtype) for x in WHOLE))]


def attend(odd: bool = False, *, dtype: torch.dtype = torch.float64, short: int = 0, **given: Any) -> Tensor:
    """A call in which the odd rank is given something else than the others: [theirs, its own]."""
    mine = {name: value[odd] if isinstance(value, list) else value for name, value in given.items()}
    names = "layout", "route", "per_sequence", "head_groups"
    cp = ContextParallel(**{name: mine.pop(name) for name in names if name in mine})
    x = shares(ContextParallel(layout=cp.layout), dtype)
    return attention(*(part[:, : part.shape[1] - short] for part in x), cp=cp, **mine)


def skip_a_backward(odd: bool) -> None:
    for step in range(3):
        out = attend(route="ring").pow(2).sum()
        if not (odd and step == 1):
            out.backward()


def forward_once_more(odd: bool) -> None:
    out = attend()
    if odd:
        attend()
    out.sum().backward()


def backward_twice(odd: bool) -> None:
    out = attend().sum()
    out.backward(retain_graph=True)
    if odd:
        out.backward()
    attend()


def backward_in_another_order(odd: bool) -> None:
    for out in [attend(), attend()][:: -1 if odd else 1]:
        out.sum().backward()


def unshard_instead(odd: bool) -> None:
    ContextParallel().unshard(torch.zeros(1, 4)) if odd else attend()


def unshard_another_shape(odd: bool) -> None:
    ContextParallel().unshard(torch.zeros(1, 4, 3 if odd else 2), dim=1)


def warm_then_differ(odd: bool) -> None:
    """Each rank has asked for both before, so that a look at what it has seen tells nothing."""
    for layout in ("zigzag", "striped"):
        attend(layout=layout)
    attend(odd, layout=["zigzag", "striped"])


def ring_function(odd: bool) -> None:
    x = [part[:, : part.shape[1] - odd] for part in shares(ContextParallel())]
    borders = torch.tensor([0, TOKENS // SIZE], dtype=torch.int32)
    ringattn.zigzag_ring_flash_attn_varlen_func(*(part[0] for part in x), borders, TOKENS // SIZE, causal=True)


def two_threads(odd: bool) -> None:
    """While one thread of the odd rank is in a pass, another one begins one."""
    cp, inside, left = ContextParallel(), Barrier(2), Barrier(2)
    agreement = cp.communicator.agreement

    def hold() -> None:
        with agreement.turn("forward", b"{}"):
            inside.wait(20)
            left.wait(20)

    holding = Thread(target=hold)
    holding.start()
    inside.wait(20)
    try:
        attend() if odd else None
    finally:
        left.wait(20)
        holding.join()
    attend()


def check_on_one_rank(odd: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if odd:
            patch.setenv("RINGATTN_CHECK", "1")
        attend()


def other_batches(odd: bool) -> None:
    """Two calls alike in all but their tensors, in another order: only their contents tell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGATTN_CHECK", "1")
        cp = ContextParallel()
        for batch in (2, 1) if odd else (1, 2):
            attention(*cp.shard(*(x * batch for x in WHOLE)), cp=cp)


def another_version(odd: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ringattn.terms.__version__", "9.9" if odd else "0.1")
        attend()


OTHER = "The ranks of a group ask for different attention: "
STEP = "The ranks of a group are out of step: "
FAULTS: dict[str, tuple[Callable[[bool], object], str, str]] = {
    # what the odd rank does, what every rank raises, and what the odd rank itself raises where that is something else
    "causal": (
        lambda odd: attend(odd, causal=[True, False]),
        OTHER + r"mask is \(-1, 0\) on rank 0 and \(-1, -1\) on",
        "",
    ),
    "window": (lambda odd: attend(odd, window_size=[(4, 0), (5, 0)]), OTHER + r"mask is \(4, 0\) .* on rank 2", ""),
    "any mask": (
        lambda odd: attend(odd, mask=[masks.causal(TOKENS), masks.prefix(TOKENS, 9)]),
        OTHER + rf"mask is {masks.causal(TOKENS).digest} \(1 tiles, 48 tokens\) on rank 0 and "
        rf"{masks.prefix(TOKENS, 9).digest} \(2 tiles, 48 tokens\) on rank 2",
        "",
    ),
    "a mask on one rank": (
        lambda odd: attend(odd, mask=[None, masks.causal(TOKENS)]),
        OTHER + rf"mask is \(-1, -1\) on rank 0 and {masks.causal(TOKENS).digest} \(1 tiles, 48 tokens\) on rank 2",
        "",
    ),
    "refused mask": (
        lambda odd: attend(odd, mask=[masks.causal(TOKENS), masks.causal(TOKENS + 3)]),
        r"rank 2 refused its input: ValueError: q has 16 tokens, but rank 2 of 3 holds 17 of the 51 in all",
        "q has 16 tokens, but rank 2 of 3 holds 17 of the 51 in all, which are those of the mask",
    ),
    "layout": (warm_then_differ, OTHER + "layout is zigzag on rank 0 and striped on rank 2", ""),
    "route": (lambda odd: attend(odd, route=["ring", "waves"]), OTHER + r"route is ring .* waves\(2\) on rank 2", ""),
    "dtype": (
        lambda odd: attend(dtype=torch.bfloat16 if odd else torch.float16),
        OTHER + r"dtype is torch\.float16 on rank 0 and torch\.bfloat16 on rank 2",
        "",
    ),
    "cu_seqlens": (
        lambda odd: attend(odd, cu_seqlens=[[0, 24, TOKENS], [0, 12, TOKENS]]),
        OTHER + r"cu_seqlens is \(0, 24, 48\) on rank 0 and \(0, 12, 48\) on rank 2",
        "",
    ),
    "a token short": (
        lambda odd: attend(short=int(odd)),
        OTHER + r"cu_seqlens is \(0, 48\) .* \(0, 45\) on rank 2",
        "",
    ),
    "head_groups": (
        lambda odd: attend(odd, head_groups=[1, 2]),
        OTHER + "head_groups is 1 on rank 0 and 2 on rank 2",
        "",
    ),
    "per_sequence": (lambda odd: attend(odd, per_sequence=[True, False]), OTHER + "per_sequence is True", ""),
    "softmax_scale": (lambda odd: attend(odd, softmax_scale=[0.5, 0.25]), OTHER + r"softmax_scale is 0\.5", ""),
    "softcap": (
        lambda odd: attend(odd, softcap=[0.0, 3.0]),
        OTHER + r"softcap is 0\.0 on rank 0 and 3\.0 on rank 2",
        "",
    ),
    "dropout": (lambda odd: attend(odd, dropout_p=[0.1, 0.2]), OTHER + r"dropout is 0\.1 .* 0\.2 on rank 2", ""),
    "seed": (
        lambda odd: (torch.manual_seed(7 if odd else 5), attend(dropout_p=0.1)),
        OTHER + r"seed is \d+ on rank 0 and \d+ on rank 2",
        "",
    ),
    "sinks": (
        lambda odd: attend(sinks=None if odd else torch.zeros(4, dtype=torch.float64)),
        OTHER + r"sinks is \(4,\) on rank 0 and none on rank 2",
        "",
    ),
    "slopes": (
        lambda odd: attend(alibi_slopes=torch.ones(4) if odd else None),
        OTHER + r"alibi_slopes is none on rank 0 and \(4,\) on rank 2",
        "",
    ),
    "gradients": (
        lambda odd: torch.no_grad()(attend)() if odd else attend(),
        OTHER + "needs_gradients is True on rank 0 and False on rank 2",
        "",
    ),
    "version": (another_version, OTHER + r"version is 0\.1 on rank 0 and 9\.9 on rank 2", ""),
    "environment": (check_on_one_rank, OTHER + "RINGATTN_CHECK is False on rank 0 and True on rank 2", ""),
    "contents": (other_batches, OTHER + r"tensor 0 of shard is .* on rank 0 and .* on rank 2", ""),
    "skipped backward": (skip_a_backward, STEP + r"rank 0 begins .*backward of \d+, and rank 2 .*forward", ""),
    "forward once more": (forward_once_more, STEP + r"rank 0 begins .*backward of \d+, and rank 2 .*forward", ""),
    "backward twice": (backward_twice, STEP + r"rank 0 begins .*forward, and rank 2 .*backward of \d+", ""),
    "backward in another order": (
        backward_in_another_order,
        STEP + r"rank 0 begins .*backward of \d+, and rank 2 .*backward of \d+",
        "",
    ),
    "unshard instead": (unshard_instead, STEP + r"rank 0 begins .*forward, and rank 2 .*unshard", ""),
    "unshard another shape": (unshard_another_shape, OTHER + r"shape is \(1, 2\) on rank 0 and \(1, 3\) on rank 2", ""),
    "two threads": (
        two_threads,
        r"rank 2 refused its input: RuntimeError: Two threads",
        "Two threads of rank 2 use one",
    ),
    "refused shape": (
        lambda odd: attention(*(x[0, 0] if odd else x for x in shares(CP)), cp=CP),
        r"rank 2 refused its input: ValueError: q, k and v must all be \(batch, tokens",
        "q, k and v must all be",
    ),
    "refused option": (
        lambda odd: attend(dropout_p=1.5 if odd else 0.0),
        r"rank 2 refused its input: ValueError: dropout_p must be in \[0, 1\), got 1\.5",
        "dropout_p must be in",
    ),
    "refused before it is a call": (
        lambda odd: attention(*shares(CP)[:2], [] if odd else shares(CP)[2], cp=CP),
        r"rank 2 refused its input: TypeError: q, k and v must be tensors, got Tensor, Tensor, list",
        "q, k and v must be tensors",
    ),
    "refused number": (
        lambda odd: attend(dropout_p="half" if odd else 0.0),
        r"rank 2 refused its input: ValueError: dropout_p must be a finite number, got 'half'",
        "dropout_p must be a finite number",
    ),
    "refused by ring-flash-attention's function": (
        ring_function,
        r"rank 2 refused its input: ValueError: cu_seqlens end at 16, but q has 15 tokens",
        "cu_seqlens end at 16",
    ),
    "refused unshard": (
        lambda odd: ContextParallel(cu_seqlens=[0, 12]).unshard(torch.zeros(1, 5 if odd else 4)),
        r"rank 2 refused its input: ValueError: Rank 2 holds 4 of 12 tokens",
        "Rank 2 holds 4 of 12",
    ),
}


def play() -> dict[str, tuple[str, float]]:
    """What this rank is told of each fault, and after how many seconds."""
    odd, told = dist.get_rank() == ODD, dict[str, tuple[str, float]]()
    expected = attention(*WHOLE, causal=True)
    for name, (fault, _, _) in FAULTS.items():
        dist.barrier()
        torch.manual_seed(3)
        began = time.monotonic()
        try:
            fault(odd)
        except (RuntimeError, TypeError, ValueError) as error:
            told[name] = f"{type(error).__name__}: {error}", time.monotonic() - began
        cp = ContextParallel()
        after = attention(*cp.shard(*WHOLE), cp=cp, causal=True)
        assert (after - cp.shard(expected)).abs().max() <= 1e-12, f"after {name!r}"
    return told


@pytest.fixture(scope="module")
def told() -> list[dict[str, tuple[str, float]]]:
    return processes.run(SIZE, play, timeout=200, group_timeout=60)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_rank_is_told(fault: str, told: list[dict[str, tuple[str, float]]]) -> None:
    _, expected, own = FAULTS[fault]
    for rank, heard in enumerate(told):
        assert fault in heard, f"rank {rank} was told nothing of {fault!r}"
        message, seconds = heard[fault]
        pattern = own if own and rank == ODD else expected
        assert re.search(pattern, message, re.DOTALL), f"rank {rank}: {message}"
        assert seconds < 5, f"rank {rank} waited {seconds:.1f} s"
        kind = message.partition(":")[0]
        assert kind in (
            "DisagreementError",
            "OutOfStepError",
            "RefusedError",
            "TypeError",
            "ValueError",
            "RuntimeError",
        ), kind


def lost(how: str) -> str:
    """The others attend; the odd rank ends, or does not come."""
    attend()
    if dist.get_rank() == ODD:
        if how == "dies":
            os._exit(1)
        time.sleep(8 if how == "is late" else 0)
        return how
    try:
        attend()
    except RuntimeError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("how", ["dies", "is late"])
def test_a_rank_that_does_not_come_is_named(how: str) -> None:
    """Torch names a port; the error names the rank. One that is late is waited for as long as the group waits."""
    first, second, _ = processes.run(SIZE, lost, how, group_timeout=3, ending=[ODD])
    for message in (first, second):
        assert "rank 2 did not begin the same pass as this rank" in message


def dies_in_a_pass() -> str:
    """The odd rank dies when it has agreed on a pass and not sent its keys."""
    cp = ContextParallel(route="ring")
    x = cp.shard(*WHOLE)
    if dist.get_rank() == ODD:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ringattn.call.attend_in_groups", lambda *_: os._exit(1))
            attention(*x, cp=cp)
    try:
        attention(*x, cp=cp)
    except RuntimeError as error:
        return str(error)
    return "nothing"


def test_a_rank_that_dies_in_a_pass_is_named() -> None:
    first, _, _ = processes.run(SIZE, dies_in_a_pass, group_timeout=5, ending=[ODD])
    assert "A message of rank 2 was lost in the middle of a pass" in first


_MADE_FIRST = ContextParallel()  # as a module's default: it is used with the group that there is then


def made_again_smaller(store: str) -> list[str]:
    said = []
    attention(*_MADE_FIRST.shard(*WHOLE), cp=_MADE_FIRST)
    rank, pair = dist.get_rank(), dist.new_group([0, 1])
    apart = ContextParallel(pair)
    if rank < 2:
        attention(*apart.shard(*WHOLE), cp=apart)
    dist.destroy_process_group()
    for cp in (_MADE_FIRST, apart)[: 1 if rank == ODD else 2]:
        with pytest.raises(
            RuntimeError, match=r"The group of \d ranks that this ContextParallel .* has been destroyed"
        ):
            cp.shard(*WHOLE)
    if rank != ODD:
        dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{store}")
        for use in (lambda: _MADE_FIRST.cp_rank, lambda: attention(*WHOLE, cp=_MADE_FIRST)):
            with pytest.raises(RuntimeError, match=r"The group of 3 ranks .* has been destroyed: make another one"):
                use()
        cp = ContextParallel()
        attention(*cp.shard(*WHOLE), cp=cp)
        said.append(f"{cp.cp_rank} of {cp.cp_size}")
    return said


def test_groups_that_are_destroyed_and_made_again(tmp_path: Any) -> None:
    found = processes.run(SIZE, made_again_smaller, str(tmp_path / "store"), ending=range(SIZE))
    assert found == [["0 of 2"], ["1 of 2"], []]
