"""Draw schedules and layouts as SVG: the pictures of `draw`, each of them one string that stands by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from math import ceil
from typing import TypeVar

from ringattn_core.look.raster import held, raster, samples, sequence_at
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.mask_picture import ALL, NONE, mask_picture
from ringattn_core.plan.schedule import Schedule

# What the scale of colours runs through, from dark to light, so that it reads in grey too: viridis of matplotlib.
SCALE = [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]
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
    hops = 1 + max(step.hop for step in schedules[0].steps)
    for number, row in enumerate(picture.hops):
        for at, length, hop in _runs(row):
            parts.append(_rect(LEFT + side * at, TOP + side * number, side * length, side, _colour(hop, hops)))
        if side >= max(14, 8 * len(str(hops - 1))):
            y = TOP + side * (number + 0.5)
            signs = [(LEFT + side * (at + 0.5), hop) for at, hop in enumerate(row) if hop is not None]
            parts += [_text(x, y, str(hop), fill=_on(hop, hops)) for x, hop in signs]
    return _svg("Which rank computes which part of the mask, on which hop", width, height, parts, hops)


def cells(mask: Mask, *, size: int = 96) -> str:
    """Which keys each query sees: a cell is dark where all of it is live, lighter where some is, and else grey."""
    picture, tokens = mask_picture(mask.tiles, mask.num_queries, mask.num_keys, size)
    side = max(5, min(24, 560 // max(1, len(picture), *map(len, picture))))
    width, height = side * max(map(len, picture), default=0), side * len(picture)
    parts = [_text(LEFT + width / 2, 44, "keys"), _text(44, TOP + height / 2, "queries", turned=True)]
    scale = "" if tokens == (1, 1) else f", a cell of {tokens[0]:,} x {tokens[1]:,} tokens"
    return _svg(f"Which keys each query sees{scale}", width, height, [*parts, *_cells(picture, LEFT, TOP, side)])


def gallery(masks: Mapping[str, Mask], *, columns: int = 5) -> str:
    """Several small masks under their names, drawn as by `cells`."""
    panel, gap, parts = 108, 36, []
    for index, (name, mask) in enumerate(masks.items()):
        x, y = LEFT + (index % columns) * (panel + gap), TOP + (index // columns) * (panel + gap)
        picture, _ = mask_picture(mask.tiles, mask.num_queries, mask.num_keys, panel // 4)
        parts += [_text(x + panel / 2, y - 12, name)]
        parts += _cells(picture, x, y, panel / max(1, len(picture), *map(len, picture)))
    rows = -(-len(masks) // columns)
    return _svg("Rows are queries, columns keys", columns * (panel + gap) - gap, rows * (panel + gap) - gap, parts)


def _cells(picture: Sequence[Sequence[int]], left: float, top: float, side: float) -> list[str]:
    """The cells of a mask from (left, top) on: a ground, what is live on it, and white lines between the cells."""
    rows, columns = len(picture), max(map(len, picture), default=0)
    width, height = side * columns, side * rows
    live = [
        _rect(left + side * at, top + side * row, side * length, side, _colour(1 if kind == ALL else 3, 5))
        for row, line in enumerate(picture)
        for at, length, kind in _runs(line)
        if kind != NONE
    ]
    lines = [f"M{left:g} {top + side * row:g}h{width:g}" for row in range(1, rows)]
    lines += [f"M{left + side * column:g} {top:g}v{height:g}" for column in range(1, columns)]
    ground = _rect(left, top, width, height, DEAD)
    return [ground, *live, f'<path d="{"".join(lines)}" stroke="white" stroke-width="{min(1.0, side / 8):g}"/>']


def timeline(schedules: Sequence[Schedule], *, width: int = 640) -> str:
    """What each rank computes on each hop: a full bar is the most that any rank computes on any."""
    steps = [schedule.steps for schedule in schedules]
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
            parts.append(_rect(x, y + 3, filled, line - 6, _colour(step.hop, 1 + own[-1].hop), title))
    return _svg(
        "What each rank computes on each hop, and its share of all cells", width + 60, line * len(schedules), parts
    )


def ownership(sharding: Sharding, *, width: int = 640) -> str:
    """Who holds which tokens of the stream; sequences are told apart by their colours."""
    positions = samples(sharding.cu_seqlens[-1], 160, sharding.cp_size)
    side, line, sequences = width / max(1, len(positions)), 26, len(sharding.cu_seqlens) - 1
    parts = []
    for rank in range(sharding.cp_size):
        y, mine = TOP + line * rank, {number for _, number in held(sharding, rank, positions)}
        parts.append(_text(LEFT - 34, y + line / 2, f"rank {rank}"))
        parts.append(_text(LEFT + width + 34, y + line / 2, f"{sharding.length(rank):,}"))
        row = [sequence_at(sharding, p) if number in mine else None for number, p in enumerate(positions)]
        for at, length, sequence in _runs(row):
            title = None if sequence is None else f"rank {rank}, sequence {sequence}"
            parts.append(_rect(LEFT + side * at, y + 3, side * length, line - 6, _colour(sequence, sequences), title))
    return _svg("Who holds which tokens, and how many", width, line * sharding.cp_size, parts)


def _runs(values: Sequence[T]) -> Iterator[tuple[int, int, T]]:
    """(start, length, value) of every run of equal values."""
    at = 0
    for value, run in groupby(values):
        length = sum(1 for _ in run)
        yield at, length, value
        at += length


def _colour(number: int | None, count: int) -> str:
    """The colour of one of `count` hops or sequences: none has that of another."""
    return DEAD if number is None else "#" + "".join(f"{channel:02x}" for channel in _channels(number, count))


def _channels(number: int, count: int) -> list[int]:
    place = number / max(1, count - 1) * (len(SCALE) - 1)
    before = min(int(place), len(SCALE) - 2)
    return [
        round(low + (high - low) * (place - before)) for low, high in zip(SCALE[before], SCALE[before + 1], strict=True)
    ]


def _on(number: int, count: int) -> str:
    """The colour of what is written on that of a hop."""
    red, green, blue = _channels(number, count)
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 140 else "black"


def _rect(x: float, y: float, width: float, height: float, fill: str, title: str | None = None) -> str:
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"'
    return f"{shape}/>" if title is None else f"{shape}><title>{escape(title)}</title></rect>"


def _text(x: float, y: float, text: str, *, fill: str = "#333", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:g} {y:g})"' if turned else ""
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}"{turn}>{escape(text)}</text>'


def _label(x: float, y: float, width: float, height: float, rank: int) -> list[str]:
    """A strip for what a rank holds, in one of two greys, with its number where there is room."""
    number = (
        [_text(x + width / 2, y + height / 2, str(rank), fill="white")]
        if width >= 2 + 7 * len(str(rank)) and height >= 9
        else []
    )
    return [_rect(x, y, width, height, "#999" if rank % 2 else "#666"), *number]


def _scale(hops: int, width: float, y: float) -> list[str]:
    """The colours of all hops in a strip, with as many numbers under it as there is room for."""
    part = width / hops
    strip = [_rect(LEFT + part * hop, y, part, 12, _colour(hop, hops), f"hop {hop}") for hop in range(hops)]
    every = max(1, ceil(30 / part))
    numbers = [_text(LEFT + part * (hop + 0.5), y + 22, str(hop)) for hop in range(0, hops, every)]
    return [*strip, *numbers, _text(LEFT - 22, y + 6, "hop")]


def _svg(title: str, width: float, height: float, parts: Sequence[str], hops: int = 0) -> str:
    """The whole picture around parts that fill `width` times `height` from (LEFT, TOP) on, and the scale of hops."""
    legend = _scale(hops, max(width, 240), TOP + height + 14) if hops else []
    wide, high = f"{LEFT + max(width, 240) + LEFT:g}", f"{TOP + height + (60 if hops else 20):g}"
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}"',
        ' role="img" font-family="sans-serif" font-size="11" text-anchor="middle" dominant-baseline="central">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{wide}" height="{high}" fill="white"/>',
        _text(LEFT + width / 2, 14, title),
    ]
    return "\n".join([*head, *parts, *legend, "</svg>", ""])
