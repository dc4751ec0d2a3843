"""How keys of several sources lie in the common buffer of a step: side by side, in the order of their positions."""

from __future__ import annotations

from ringattn_core.lines import Line, Mask
from ringattn_core.schedule import Piece


def arranged(
    mask: Mask, sequence: int, rank: int, whole: list[Line], begun: list[Line], keys: list[Line], pieces: list[Piece]
) -> list[Line]:
    """The keys of several sources as they lie in a common buffer: the live ones, in the order of their positions."""
    everyone = whole + begun
    placed: list[Line] = []
    left, right, stride, shift = mask.left, mask.right, mask.stride, mask.shift[sequence]
    offset = pieces[-1].columns.stop if pieces else 0
    for k_start, k_length, k_offset, source in sorted(keys):
        begin, end = k_length, 0
        for q_start, q_length, _, _ in reversed(whole if source == rank else everyone):
            apart = q_start + shift - k_start
            low, high = -((left - apart) // stride), (right + apart) // stride
            if low < k_length and high > -q_length and low <= high:
                begin, end = min(begin, max(low, 0)), max(end, min(q_length + high, k_length))
                if begin == 0 and end == k_length:
                    break  # no query can need more of it
        if begin < end:
            _put(pieces, Piece(source, range(k_offset + begin, k_offset + end), offset))
            placed.append((k_start + begin * stride, end - begin, offset, source))
            offset += end - begin
    return placed


def _put(pieces: list[Piece], piece: Piece) -> None:
    """Add a piece; one that continues the last where it comes from makes it longer."""
    if pieces and (last := pieces[-1]).source == piece.source and last.rows.stop == piece.rows.start:
        piece = Piece(last.source, range(last.rows.start, piece.rows.stop), last.offset)
        pieces.pop()
    pieces.append(piece)


def merged(mask: Mask, lines: list[Line]) -> list[Line]:
    """The same with those in one that follow each other both in their positions and where they lie."""
    found = lines[:1]
    for start, length, offset, source in lines[1:]:
        first, before, place, other = found[-1]
        if (start, offset) == (first + before * mask.stride, place + before):
            found[-1] = first, before + length, place, other
        else:
            found.append((start, length, offset, source))
    return found
