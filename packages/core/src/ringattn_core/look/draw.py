"""Draw schedules and layouts as text: the mask, what each rank does when, and who holds which tokens."""

from __future__ import annotations

from collections.abc import Sequence

from ringattn_core.look.raster import held, raster, samples, sequence_at
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.schedule import Schedule

SYMBOLS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def mask(schedules: Sequence[Schedule], *, size: int = 48) -> str:
    """The attention matrix in the order of the stream; every live cell shows the hop on which it is computed.

    `schedules` are those of all ranks, in their order. A matrix of more than `size` rows or columns is drawn smaller.
    """
    picture, wide = raster(schedules, size), cell_width(len(schedules))
    margin = len(str(len(schedules) - 1))

    def cells(numbers: Sequence[int | None]) -> str:
        signs = ("·" if n is None else symbol(n) if wide == 1 else str(n) for n in numbers)
        return " ".join(f"{sign:>{wide}}" for sign in signs)

    lines = [f"{'':{margin}} | {cells(picture.key_ranks)} | rank of the key"]
    lines += [f"{rank:{margin}} | {cells(row)} |" for rank, row in zip(picture.query_ranks, picture.hops, strict=True)]
    return "\n".join(lines) + "\n" + _scale(picture.tokens)


def cell_width(cp_size: int) -> int:
    """Characters of a cell of `mask`: one where every rank and hop has a symbol, else those of the largest number."""
    return 1 if cp_size <= len(SYMBOLS) else len(str(cp_size - 1))


def _scale(tokens: tuple[int, int]) -> str:
    if tokens == (1, 1):
        return "Rows are queries with their rank, columns keys; a cell shows its hop."
    return (
        f"Rows are queries with their rank, columns keys; a cell shows one hop of {tokens[0]:,} x {tokens[1]:,} tokens."
    )


def timeline(schedules: Sequence[Schedule], *, width: int = 96) -> str:
    """What each rank computes on each hop: a full bar is the most that any rank computes on any."""
    steps = [schedule.steps for schedule in schedules]
    most = max(step.area for own in steps for step in own) or 1
    bar = max(3, min(8, width // len(steps[0]) - 1))
    total = sum(schedule.area for schedule in schedules) or 1
    margin = len(str(len(schedules) - 1))
    lines = [f"{'hop':{margin + 5}} |" + "|".join(f"{step.hop:<{bar}}" for step in steps[0]) + "|"]
    for schedule, own in zip(schedules, steps, strict=True):
        # Whatever is computed shows, be it ever so little.
        bars = ["█" * -(-step.area * bar // most) for step in own]
        count = sum(len(step.launches) for step in own)
        lines.append(
            f"rank {schedule.cp_rank:{margin}} |" + "|".join(f"{filled:·<{bar}}" for filled in bars) + "|"
            f" {100 * schedule.area / total:5.1f} % of the cells in {count} launch{'es' if count != 1 else ''}"
        )
    return "\n".join(lines)


def ownership(sharding: Sharding, *, width: int = 96) -> str:
    """Who holds which tokens of the stream; of several sequences each has another sign."""
    positions, several = samples(sharding.cu_seqlens[-1], width, sharding.cp_size), len(sharding.cu_seqlens) > 2
    signs = [symbol(sequence_at(sharding, p)) if several else "█" for p in positions]
    margin = len(str(sharding.cp_size - 1))
    lines = []
    for rank in range(sharding.cp_size):
        mine = {number for _, number in held(sharding, rank, positions)}
        line = "".join(sign if number in mine else "·" for number, sign in enumerate(signs))
        lines.append(f"rank {rank:{margin}} |{line}| {sharding.length(rank):,} tokens")
    return "\n".join([*lines, *_signs(len(sharding.cu_seqlens) - 1)])


def _signs(sequences: int) -> list[str]:
    """What the signs of `ownership` mean; of one sequence they need no word."""
    if sequences == 1:
        return []
    last = f"{sequences - 1:,}" if sequences <= 10 else f"{sequences - 1:,}, which is {symbol(sequences - 1)}"
    again = f"; after {SYMBOLS[-1]} they start again" if sequences > len(SYMBOLS) else ""
    return [f"A sign is the sequence of a token, from 0 to {last}{again}; · is held by another rank."]


def symbol(number: int) -> str:
    """One character for a number; they start again after 62."""
    return SYMBOLS[number % len(SYMBOLS)]
