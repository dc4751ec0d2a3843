"""What every communicator has to do, on threads and on real processes connected by gloo."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from math import inf

import pytest
import torch
import torch.distributed as dist

import processes
from ringattn_comms.backends import threads
from ringattn_comms.backends.torch_dist import TorchDist
from ringattn_comms.communicator import Communicator, SingleRank

Check = Callable[[Communicator], None]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def tensor(*shape: int, rank: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Some numbers that are a rank's own."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float64) + 100 * rank).to(dtype).reshape(shape)


@check
def shift_brings_what_the_rank_behind_has(comm: Communicator) -> None:
    for by in range(-comm.size, 2 * comm.size + 1):
        found = comm.shift(tensor(2, 3, rank=comm.rank), by).wait()
        assert torch.equal(found, tensor(2, 3, rank=(comm.rank - by) % comm.size))


@check
def messages_arrive_by_source(comm: Communicator) -> None:
    """Every rank has another message for every other, and asks for the last rank's first."""
    others = [rank for rank in reversed(range(comm.size)) if rank != comm.rank]
    sends = [(rank, tensor(3, rank=10 * comm.rank + rank)) for rank in sorted(others)]
    found = comm.send_recv(sends, others, tensor(3, rank=0)).wait() if others else torch.empty(0, 3)
    assert found.shape == (len(others), 3)
    for x, source in zip(found, others, strict=True):
        assert torch.equal(x, tensor(3, rank=10 * source + comm.rank))


@check
def some_ranks_may_only_send_and_some_only_receive(comm: Communicator) -> None:
    if comm.size == 1:
        return
    first, last, like = comm.rank == 0, comm.rank == comm.size - 1, tensor(2, rank=0)
    sends = [(comm.size - 1, tensor(2, rank=7))] if first else []
    found = comm.send_recv(sends, [0] if last else [], like).wait()
    assert torch.equal(found, tensor(1, 2, rank=7) if last else torch.empty(0, 2))


@check
def messages_between_two_ranks_keep_their_order(comm: Communicator) -> None:
    """Also when the later one is waited for first: what was asked for first is what was sent first."""
    works = [comm.shift(tensor(4, rank=5 * number + comm.rank), 1) for number in range(3)]
    source = (comm.rank - 1) % comm.size
    for number in (2, 0, 1):
        assert torch.equal(works[number].wait(), tensor(4, rank=5 * number + source))


@check
def all_gather_is_in_rank_order(comm: Communicator) -> None:
    found = comm.all_gather(tensor(2, 2, rank=comm.rank)).wait()
    assert torch.equal(found, torch.stack([tensor(2, 2, rank=rank) for rank in range(comm.size)]))


@check
def reduce_scatter_sums_over_the_ranks(comm: Communicator) -> None:
    found = comm.reduce_scatter(tensor(comm.size, 3, rank=comm.rank)).wait()
    assert torch.equal(found, sum(tensor(comm.size, 3, rank=rank)[comm.rank] for rank in range(comm.size)))


@check
def all_to_all_transposes(comm: Communicator) -> None:
    found = comm.all_to_all(tensor(comm.size, 3, rank=comm.rank)).wait()
    assert torch.equal(found, torch.stack([tensor(comm.size, 3, rank=rank)[comm.rank] for rank in range(comm.size)]))


@check
def every_dtype_travels(comm: Communicator) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64):
        x = tensor(2, rank=comm.rank, dtype=dtype)
        expected = torch.stack([tensor(2, rank=rank, dtype=dtype) for rank in range(comm.size)])
        for found in (comm.all_gather(x).wait(), comm.all_to_all(x.expand(comm.size, 2)).wait()):
            assert found.dtype == dtype
            assert torch.equal(found, expected)
        assert torch.equal(comm.shift(x, 1).wait(), expected[comm.rank - 1])
        ones = torch.ones(comm.size, 3, dtype=dtype)
        assert torch.equal(comm.reduce_scatter(ones).wait(), comm.size * ones[0])


@check
def empty_tensors_travel(comm: Communicator) -> None:
    x = torch.empty(0, 3)
    assert comm.shift(x, 1).wait().shape == (0, 3)
    assert comm.all_gather(x).wait().shape == (comm.size, 0, 3)
    assert comm.all_to_all(torch.empty(comm.size, 0, 3)).wait().shape == (comm.size, 0, 3)
    assert comm.reduce_scatter(torch.empty(comm.size, 0, 3)).wait().shape == (0, 3)


@check
def tensors_need_not_be_contiguous(comm: Communicator) -> None:
    x = tensor(3, comm.size, rank=comm.rank).T
    everyone = [tensor(3, comm.size, rank=rank).T for rank in range(comm.size)]
    assert torch.equal(comm.shift(x, 1).wait(), everyone[comm.rank - 1])
    assert torch.equal(comm.all_gather(x).wait(), torch.stack(everyone))
    assert torch.equal(comm.all_to_all(x).wait(), torch.stack([other[comm.rank] for other in everyone]))
    assert torch.equal(comm.reduce_scatter(x).wait(), sum(other[comm.rank] for other in everyone))


@check
def a_tensor_may_be_changed_after_the_wait(comm: Communicator) -> None:
    x = tensor(2, rank=comm.rank)
    found = comm.shift(x, 1).wait() if comm.size > 1 else x.clone()
    gathered = comm.all_gather(x).wait().clone()
    x.fill_(-1)
    assert torch.equal(found, tensor(2, rank=(comm.rank - 1) % comm.size))
    assert torch.equal(gathered[comm.rank - 1], found)


@check
def several_calls_may_be_under_way_at_once(comm: Communicator) -> None:
    x = tensor(comm.size, 2, rank=comm.rank)
    works = [comm.shift(x, 1), comm.all_gather(x), comm.shift(x + 1, -1), comm.reduce_scatter(x)]
    behind, ahead = (tensor(comm.size, 2, rank=(comm.rank + by) % comm.size) for by in (-1, 1))
    total = sum(tensor(comm.size, 2, rank=rank)[comm.rank] for rank in range(comm.size))
    assert torch.equal(works[3].wait(), total)
    assert torch.equal(works[2].wait(), ahead + 1)
    assert works[1].wait().shape == (comm.size, comm.size, 2)
    assert torch.equal(works[0].wait(), behind)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_threads(check: Check, size: int) -> None:
    threads.run(size, check, timeout=10)


def keep_every_promise() -> None:
    """The life of a process: all checks in the default group, then in pairs of every other rank."""
    for check in CHECKS:
        check(TorchDist())
    rank, size = dist.get_rank(), dist.get_world_size()
    halves = [dist.new_group(list(range(start, size, 2))) for start in range(2)]
    for check in CHECKS:
        check(TorchDist(halves[rank % 2]))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_gloo(size: int) -> None:
    processes.run(size, keep_every_promise)


@pytest.mark.parametrize(
    "check", [check for check in CHECKS if "send" not in check.__name__], ids=lambda check: check.__name__
)
def test_solo(check: Check) -> None:
    check(SingleRank())


# What threads do when something goes wrong.


def test_different_shapes_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected torch.float32 .* and got torch.float32"):
        threads.run(2, lambda comm: comm.shift(torch.zeros(2 + comm.rank), 1).wait())


def test_different_dtypes_are_an_error() -> None:
    def main(comm: Communicator) -> None:
        comm.all_gather(torch.zeros(2, dtype=torch.float32 if comm.rank else torch.float64)).wait()

    with pytest.raises(ValueError, match="all ranks need the same shapes and dtypes"):
        threads.run(2, main)


def test_waiting_for_a_message_that_never_comes_ends() -> None:
    def main(comm: Communicator) -> None:
        if comm.rank == 1:
            comm.shift(torch.zeros(1), 1).wait()
            comm.shift(torch.zeros(1), 1).wait()
        else:
            comm.shift(torch.zeros(1), 1).wait()

    with pytest.raises(TimeoutError, match=r"rank 1 waited 0\.2 s for a message from rank 0: every rank has to make"):
        threads.run(2, main, timeout=0.2)


def test_a_rank_that_raises_ends_the_others() -> None:
    def main(comm: Communicator) -> None:
        if comm.rank == 1:
            raise LookupError("lost")
        comm.all_gather(torch.zeros(1)).wait()

    with pytest.raises(LookupError, match="lost"):
        threads.run(3, main, timeout=inf)  # Nothing else ends them.


def test_results_come_in_rank_order() -> None:
    def main(comm: Communicator) -> int:
        time.sleep(0.02 * (3 - comm.rank))
        return comm.rank

    assert threads.run(4, main) == [0, 1, 2, 3]


# And what the helper for processes does.


def raise_on_one() -> None:
    if dist.get_rank() == 1:
        raise LookupError("lost in a process")
    dist.barrier()


def never_end() -> None:
    while True:
        time.sleep(1)


def test_the_traceback_of_a_process_is_shown() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2 raised.*in raise_on_one.*lost in a process"):
        processes.run(2, raise_on_one)


def test_processes_that_hang_are_ended() -> None:
    with pytest.raises(TimeoutError, match=re.escape("ranks [0, 1] of 2 were not done after 2 s")):
        processes.run(2, never_end, timeout=2)
