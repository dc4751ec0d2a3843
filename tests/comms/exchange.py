"""The exchange kernel on CPUs by Triton's interpreter: a program, because the interpreter has to be asked for early.

Run as `TRITON_INTERPRET=1 python tests/comms/exchange.py`; tests/gpu/test_exchange.py has more, on GPUs. The
interpreter runs the blocks of a kernel one after the other, so ranks that wait for each other have one block each.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import torch
from torch import Tensor

from ringattn_comms.backends import exchange as module
from ringattn_comms.backends.exchange import exchange

SIZE, ROUNDS = 3, 4
LENGTHS = (5, 700, 16384, 40000)  # fewer than a block moves at once, exactly as many, and more
ODD = torch.arange(60.0).view(6, 10)


def shared(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """One tensor for each rank, in memory that all processes address."""
    return [torch.zeros(shape, dtype=dtype).share_memory_() for _ in range(SIZE)]


def value(rank: int, turn: int) -> float:
    return 100.0 * turn + rank + 1


def take_part(rank: int, signals: list[Tensor], keys: list[Tensor], read: list[Tensor]) -> None:
    """Lay out this rank's keys, meet, and read those of the rank before: for each round other numbers."""
    module._RINGS = module._READERS = 1
    for turn in range(ROUNDS):
        for length in LENGTHS:
            mine = torch.full((length,), value(rank, turn))
            theirs = keys[(rank - 1) % SIZE][:length]
            exchange([(keys[rank][:length], mine)], [(read[rank][turn, :length], theirs)], tuple(signals), rank)
            exchange([], [], tuple(signals), rank)  # Nothing of the next round is written until all have read.


def check_ranks_meet_between_writing_and_reading() -> None:
    """Each reads what was written in this round: no exchange ends, and none begins, too early."""
    signals, keys, read = shared(SIZE, dtype=torch.int64), shared(max(LENGTHS)), shared(ROUNDS, max(LENGTHS))
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=take_part, args=(rank, signals, keys, read)) for rank in range(SIZE)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=60)
    alive = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for rank in alive:
        ranks[rank].kill()
    assert not alive, f"ranks {alive} are still waiting"
    assert [process.exitcode for process in ranks] == [0] * SIZE
    for rank in range(SIZE):
        for turn in range(ROUNDS):
            assert (read[rank][turn] == value((rank - 1) % SIZE, turn)).all(), (rank, turn)
        assert signals[rank].tolist() == [2 * ROUNDS * len(LENGTHS)] * SIZE


def read_twice(signals: list[Tensor], keys: Tensor, read: Tensor) -> None:
    module._RINGS = module._READERS = 1
    for turn in range(2):
        exchange([], [(read[turn], keys)], tuple(signals), 0)


def check_a_rank_waits_in_every_round() -> None:
    """The other one, played here, is late each time, and writes its keys before it rings."""
    signals, keys, read = shared(2, dtype=torch.int64)[:2], shared(9)[0], shared(2, 9)[0]
    process = multiprocessing.get_context("fork").Process(target=read_twice, args=(signals, keys, read))
    process.start()
    for turn in range(2):
        process.join(timeout=1.0)
        assert process.is_alive() and (read[turn:] == 0).all(), f"rank 0 has not waited in round {turn}"
        keys.fill_(turn + 1.0)
        signals[0][1] += 1
    process.join(timeout=60)
    assert process.exitcode == 0 and read[:, 0].tolist() == [1.0, 2.0]
    assert signals[1].tolist() == [2, 0] and signals[0].tolist() == [2, 2]


def alone(first: list[tuple[Tensor, Tensor]], then: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Rank 1 of two, the other of which has rung in advance; the kernel has all its blocks."""
    signals = [torch.zeros(2, dtype=torch.int64) for _ in range(2)]
    signals[1][0] = module._RINGS
    exchange(first, then, tuple(signals), 1)
    return signals


def check_all_blocks_move_everything_once() -> None:
    for moves in range(4):
        for length in LENGTHS:
            sources = [torch.arange(length, dtype=torch.float32) + 7 * move for move in range(2 * moves)]
            targets = [torch.full((length + 9,), -1.0) for _ in sources]
            pairs = [(to[:length], source) for to, source in zip(targets, sources, strict=True)]
            signals = alone(pairs[:moves], pairs[moves:])
            for to, source in zip(targets, sources, strict=True):
                assert torch.equal(to[:length], source) and (to[length:] == -1.0).all()
            assert [s.tolist() for s in signals] == [[0, module._RINGS], [module._RINGS, module._RINGS]]


def check_what_the_kernel_cannot_move_is_copied() -> None:
    """Tensors with gaps, and more moves than one kernel makes; what is narrower is rounded."""
    targets = [
        torch.zeros(6, 10, dtype=torch.bfloat16)[:, :5],
        torch.zeros(6, 5),
        *(torch.zeros(6, 10) for _ in range(9)),
    ]
    sources = [ODD[:, :5], ODD[:, 5:], *(ODD + move for move in range(9))]
    for half in (slice(0), slice(5), slice(11)):
        for to in targets:
            to.zero_()
        pairs = list(zip(targets, sources, strict=True))
        alone(pairs[half], pairs[half.stop :])
        for to, source in pairs:
            assert torch.equal(to, source.to(to.dtype))


CHECKS: tuple[Callable[[], None], ...] = (
    check_a_rank_waits_in_every_round,
    check_ranks_meet_between_writing_and_reading,
    check_all_blocks_move_everything_once,
    check_what_the_kernel_cannot_move_is_copied,
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    for check in CHECKS:
        check()
        print(check.__name__, flush=True)
