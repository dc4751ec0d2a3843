"""Draw schedules and layouts as SVG: the pictures of `draw`, each of them one string that stands by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import TypeVar

from ringattn_core.draw import symbol
from ringattn_core.layout import Division
from ringattn_core.raster import held, raster, samples, sequence_at
from ringattn_core.schedule import Schedule

# After Tableau's ten, which are made to be told apart. The eleventh hop or sequence looks like the first.
COLOURS = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#b07aa1", "#9c755f", "#d37295", "#a0a02c", "#79706e"]
DEAD = "#f2f2f2"
LEFT, TOP = 64, 64  # room for labels

T = TypeVar("T")


def mask(schedules: Sequence[Schedule], *, size: int = 96) -> str:
    """The attention matrix in the order of the stream; a live cell has the colour of the hop on which it is computed.

    `schedules` are those of all ranks, in their order. A matrix of more than `size` rows or columns is drawn smaller.
    """
    picture = raster(schedules, size)
    side = max(5, min(24, 560 // max(1, len(picture.query_ranks), len(picture.key_ranks))))
    width, height = side * len(picture.key_ranks), side * len(picture.query_ranks)
    parts = [_text(LEFT + width / 2, 34, "keys, by rank"), _text(18, TOP + height / 2, "queries, by rank", turned=True)]
    for at, length, rank in _runs(picture.key_ranks):
        parts += _label(LEFT + side * at, TOP - 22, side * length, 18, rank)
    for at, length, rank in _runs(picture.query_ranks):
        parts += _label(LEFT - 22, TOP + side * at, 18, side * length, rank)
    for number, row in enumerate(picture.hops):
        for at, length, hop in _runs(row):
            parts.append(_rect(LEFT + side * at, TOP + side * number, side * length, side, _colour(hop)))
        if side >= 14:
            y = TOP + side * (number + 0.5)
            signs = [(LEFT + side * (at + 0.5), symbol(hop)) for at, hop in enumerate(row) if hop is not None]
            parts += [_text(x, y, sign, fill="white") for x, sign in signs]
    hops = sorted({hop for row in picture.hops for hop in row if hop is not None})
    return _svg("Which rank computes which part of the mask, on which hop", width, height, parts, hops)


def timeline(schedules: Sequence[Schedule], *, width: int = 640) -> str:
    """What each rank computes on each hop: a full bar is the most that any rank computes on any."""
    steps = [schedule.first_group for schedule in schedules]
    most = max(step.area for own in steps for step in own) or 1
    total = sum(schedule.area for schedule in schedules) or 1
    column, line = max(20, width // len(steps[0])), 26
    width, word = column * len(steps[0]), "hop " if column >= 40 else ""
    parts = [_text(LEFT + column * (at + 0.5), TOP - 14, f"{word}{step.hop}") for at, step in enumerate(steps[0])]
    for number, (schedule, own) in enumerate(zip(schedules, steps, strict=True)):
        y = TOP + line * number
        parts.append(_text(LEFT - 34, y + line / 2, f"rank {schedule.cp_rank}"))
        parts.append(_text(LEFT + width + 34, y + line / 2, f"{100 * schedule.area / total:.1f} %"))
        for index, step in enumerate(own):
            x, filled = LEFT + column * index, (column - 4) * step.area / most
            title = f"rank {schedule.cp_rank}, hop {step.hop}: {step.area:,} cells in {len(step.launches)} launches"
            parts.append(_rect(x, y + 3, column - 4, line - 6, DEAD))
            parts.append(_rect(x, y + 3, filled, line - 6, _colour(step.hop), title))
    return _svg(
        "What each rank computes on each hop, and its share of all cells", width + 60, line * len(schedules), parts
    )


def ownership(division: Division, *, width: int = 640) -> str:
    """Who holds which tokens of the stream; sequences are told apart by their colours."""
    positions = samples(division.cu_seqlens[-1], 160, division.cp_size)
    side, line = width / max(1, len(positions)), 26
    parts = []
    for rank in range(division.cp_size):
        y, mine = TOP + line * rank, {number for _, number in held(division, rank, positions)}
        parts.append(_text(LEFT - 34, y + line / 2, f"rank {rank}"))
        parts.append(_text(LEFT + width + 34, y + line / 2, f"{division.length(rank):,}"))
        row = [sequence_at(division, p) if number in mine else None for number, p in enumerate(positions)]
        for at, length, sequence in _runs(row):
            title = None if sequence is None else f"rank {rank}, sequence {sequence}"
            parts.append(_rect(LEFT + side * at, y + 3, side * length, line - 6, _colour(sequence), title))
    return _svg("Who holds which tokens, and how many", width, line * division.cp_size, parts)


def _runs(values: Sequence[T]) -> Iterator[tuple[int, int, T]]:
    """(start, length, value) of every run of equal values."""
    at = 0
    for value, run in groupby(values):
        length = sum(1 for _ in run)
        yield at, length, value
        at += length


def _colour(number: int | None) -> str:
    return DEAD if number is None else COLOURS[number % len(COLOURS)]


def _rect(x: float, y: float, width: float, height: float, fill: str, title: str | None = None) -> str:
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"'
    return f"{shape}/>" if title is None else f"{shape}><title>{escape(title)}</title></rect>"


def _text(x: float, y: float, text: str, *, fill: str = "#333", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:g} {y:g})"' if turned else ""
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}"{turn}>{escape(text)}</text>'


def _label(x: float, y: float, width: float, height: float, rank: int) -> list[str]:
    """A strip for what a rank holds, in one of two greys, with its number where there is room."""
    number = [_text(x + width / 2, y + height / 2, str(rank), fill="white")] if min(width, height) >= 9 else []
    return [_rect(x, y, width, height, "#999" if rank % 2 else "#666"), *number]


def _svg(title: str, width: float, height: float, parts: Sequence[str], hops: Sequence[int] = ()) -> str:
    """The whole picture around parts that fill `width` times `height` from (LEFT, TOP) on, and a legend of the hops."""
    across = max(1, int(max(width, 240) // 60))
    legend = []
    for index, hop in enumerate(hops):
        x, y = LEFT + 60 * (index % across), TOP + height + 14 + 20 * (index // across)
        legend += [_rect(x, y, 12, 12, _colour(hop)), _text(x + 34, y + 6, f"hop {hop}")]
    wide, high = f"{LEFT + max(width, 240) + LEFT:g}", f"{TOP + height + 20 + 20 * -(-len(hops) // across):g}"
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}"',
        ' role="img" font-family="sans-serif" font-size="11" text-anchor="middle" dominant-baseline="central">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{wide}" height="{high}" fill="white"/>',
        _text(LEFT + width / 2, 14, title),
    ]
    return "\n".join([*head, *parts, *legend, "</svg>", ""])
