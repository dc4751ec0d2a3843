"""How keys of several sources lie in the key buffer of a step: one after the other, in the order of their positions."""

from __future__ import annotations

from ringattn_core.plan.lines import Line, Mask
from ringattn_core.plan.schedule import KeySlice


def arranged(
    mask: Mask,
    sequence: int,
    rank: int,
    whole: list[Line],
    early_rows: list[Line],
    keys: list[Line],
    key_slices: list[KeySlice],
) -> list[Line]:
    """The live keys of several sources as they lie in the key buffer, in the order of their positions."""
    everyone = whole + early_rows
    placed: list[Line] = []
    left, right, stride, shift = mask.left, mask.right, mask.stride, mask.shift[sequence]
    offset = key_slices[-1].columns.stop if key_slices else 0
    for k_start, k_length, k_offset, source in sorted(keys):
        begin, end = k_length, 0
        for q_start, q_length, _, _ in reversed(whole if source == rank else everyone):
            apart = q_start + shift - k_start
            low, high = -((left - apart) // stride), (right + apart) // stride
            if low < k_length and high > -q_length and low <= high:
                begin, end = min(begin, max(low, 0)), max(end, min(q_length + high, k_length))
                if begin == 0 and end == k_length:
                    break  # no other query can need more of it
        if begin < end:
            _put(key_slices, KeySlice(source, range(k_offset + begin, k_offset + end), offset))
            placed.append((k_start + begin * stride, end - begin, offset, source))
            offset += end - begin
    return placed


def _put(key_slices: list[KeySlice], key_slice: KeySlice) -> None:
    """Add a key slice; one that continues the rows of the last makes that longer."""
    if key_slices and (last := key_slices[-1]).source == key_slice.source and last.rows.stop == key_slice.rows.start:
        key_slice = KeySlice(last.source, range(last.rows.start, key_slice.rows.stop), last.offset)
        key_slices.pop()
    key_slices.append(key_slice)


def merged(mask: Mask, lines: list[Line]) -> list[Line]:
    """The same lines, with neighbours joined that continue each other in their positions and in the buffer."""
    found = lines[:1]
    for start, length, offset, source in lines[1:]:
        first, before, place, other = found[-1]
        if (start, offset) == (first + before * mask.stride, place + before):
            found[-1] = first, before + length, place, other
        else:
            found.append((start, length, offset, source))
    return found
