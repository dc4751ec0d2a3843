"""Makers of masks: each function says in words what a query sees, and returns the tiles that say it in numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby, pairwise

from ringattn_core.plan.band import band_of, moved, tile_of
from ringattn_core.plan.mask import Mask, check_disjoint, disjoint_mask
from ringattn_core.plan.read_mask import of_dense, of_mod
from ringattn_core.plan.tile import CAUSAL, FAR, Tile, Window, joined_runs

__all__ = [
    "Mask",
    "blocks",
    "causal",
    "chunked",
    "end_to_end",
    "first",
    "full",
    "of_dense",
    "of_mod",
    "packed",
    "prefix",
    "shared_prefix",
    "slices",
    "tree",
    "two_way",
    "window",
]

KINDS = ("full", "causal", "inverse causal", "bidirectional causal")
"""The kinds of a slice, by MagiAttention's numbers 0 to 3."""


def full(num_queries: int, num_keys: int | None = None) -> Mask:
    """Every query sees every key; as many keys as queries where no number is given."""
    return packed([num_queries], window=(-1, -1), key_lengths=None if num_keys is None else [num_keys])


def causal(num_queries: int, num_keys: int | None = None) -> Mask:
    """A query sees the keys up to its position; of other numbers, the last query stands at the last key."""
    return packed([num_queries], key_lengths=None if num_keys is None else [num_keys])


def window(num_tokens: int, left: int, right: int = 0) -> Mask:
    """A query sees `left` tokens before and `right` tokens after its position, and its position; -1 is an open side."""
    return packed([num_tokens], window=(left, right))


def packed(lengths: Sequence[int], *, window: Window = CAUSAL, key_lengths: Sequence[int] | None = None) -> Mask:
    """Sequences of these lengths, one after another: a query sees keys of the same sequence alone.

    `window` is FlashAttention's (left, right), aligned to the bottom-right corner of each sequence; -1 is an open side.
    `key_lengths` are for cross attention. Raises ValueError for negative lengths and for another number of sequences.
    """
    keys = lengths if key_lengths is None else key_lengths
    if len(keys) != len(lengths):
        raise ValueError(f"{len(lengths)} sequences of queries need as many of keys, got {len(keys)}.")
    left, right = window
    tiles = []
    for q, k in zip(_ranges(lengths, "lengths"), _ranges(keys, "key_lengths"), strict=True):
        corner = k.stop - q.stop
        tiles.append(Tile(q, k, corner - left if left >= 0 else -FAR, corner + right if right >= 0 else FAR))
    return disjoint_mask(tiles, sum(lengths), sum(keys))


def two_way(ranges: Iterable[range], num_tokens: int | None = None) -> Mask:
    """The tokens of each range see each other, such as those of an image; nothing else is live.

    The stream ends with the last range where no number of tokens is given. Raises ValueError for overlapping ranges.
    """
    parts = list(ranges)
    length = max((part.stop for part in parts), default=0) if num_tokens is None else num_tokens
    return Mask(tuple(Tile(part, part) for part in parts), length, length)


def prefix(num_tokens: int, length: int) -> Mask:
    """Prefix-LM: the first `length` tokens see each other, the others what is causal."""
    if not 0 <= length <= num_tokens:
        raise ValueError(f"A prefix of {num_tokens} tokens has 0 to {num_tokens} of them, got {length}.")
    return causal(num_tokens) | two_way([range(length)], num_tokens)


def shared_prefix(prompts: int | Sequence[int], answers: Sequence[int] | Sequence[Sequence[int]]) -> Mask:
    """Prompts with several answers each: an answer sees its prompt and what is causal in itself, no other answer.

    The stream is a prompt, its answers, the next prompt, its answers: `shared_prefix(8192, [1024] * 24)` of one
    prompt, `shared_prefix([300, 200], [[10, 20], [30]])` of two. Raises ValueError if their numbers differ.
    """
    heads = [prompts] if isinstance(prompts, int) else list(prompts)
    given = [answers] if isinstance(prompts, int) else list(answers)
    if len(heads) != len(given) or not all(isinstance(each, Sequence) for each in given):
        raise ValueError(f"Each of {len(heads)} prompts needs a list of the lengths of its answers, got {answers}.")
    parents, lengths = list[int](), list[int]()
    for head, tails in zip(heads, given, strict=True):
        root = len(lengths)
        lengths += [head, *tails]  # type: ignore[misc]
        parents += [-1, *[root] * len(tails)]  # type: ignore[arg-type]
    return tree(parents, lengths)


def tree(parents: Sequence[int], lengths: Sequence[int]) -> Mask:
    """A forest of texts: node i sees what is causal in itself, and all of its parent, the parent's parent, and so on.

    `parents[i]` is the node that i goes on from, which comes before it, or -1; `lengths[i]` is its number of tokens.
    Nodes whose descendants follow them in the stream (depth first) take two tiles each. Raises ValueError for a parent
    that does not come before its child, and for lists of different lengths.
    """
    if len(parents) != len(lengths):
        raise ValueError(
            f"Every node has a parent and a length, got {len(parents)} parents and {len(lengths)} lengths."
        )
    for node, parent in enumerate(parents):
        if not -1 <= parent < node:
            raise ValueError(f"The parent of node {node} must be -1 or a node before it, got {parent}.")
    nodes = _ranges(lengths, "lengths")
    below: list[list[range]] = [[] for _ in nodes]
    tiles = [Tile(node, node, high=0) for node in nodes]
    for index in reversed(range(len(nodes))):
        runs = joined_runs(below[index])
        tiles += [Tile(run, nodes[index]) for run in runs]
        if parents[index] >= 0:
            below[parents[index]] += joined_runs([nodes[index], *runs])
    return disjoint_mask(tiles, sum(lengths), sum(lengths))


def chunked(num_tokens: int, size: int) -> Mask:
    """A query sees what is causal in its chunk of `size` tokens, as in Llama 4's local layers."""
    if size < 1 or num_tokens < 0:
        raise ValueError(f"Chunks of 1 token or more divide 0 tokens or more, got {size} and {num_tokens}.")
    return packed([min(size, num_tokens - start) for start in range(0, num_tokens, size)])


def first(num_tokens: int, count: int) -> Mask:
    """Every query sees the first `count` tokens, up to its position: global tokens, or attention sinks."""
    if min(num_tokens, count) < 0:
        raise ValueError(f"The first 0 or more of 0 or more tokens, got {count} of {num_tokens}.")
    return Mask((Tile(range(num_tokens), range(min(count, num_tokens)), high=0),), num_tokens, num_tokens)


def end_to_end(parts: Iterable[Mask]) -> Mask:
    """The masks of several streams, such as the rows of a batch, as one: no stream sees the keys of another."""
    tiles, rows, columns = list[Tile](), 0, 0
    for part in parts:
        tiles += (tile_of(moved(band_of(tile), rows, columns)) for tile in part.tiles)
        rows, columns = rows + part.num_queries, columns + part.num_keys
    return disjoint_mask(tiles, rows, columns)


def blocks(live: Sequence[Sequence[bool | int]], size: int | tuple[int, int]) -> Mask:
    """Block-sparse: `live[i][j]` says whether the i-th block of queries sees the j-th block of keys.

    `size` is the tokens of a block, or (queries, keys). Raises ValueError if the rows of `live` differ in length.
    """
    size_q, size_k = (size, size) if isinstance(size, int) else size
    if min(size_q, size_k) < 1:
        raise ValueError(f"A block has 1 token or more, got {size}.")
    rows, width = [tuple(map(bool, row)) for row in live], len(live[0]) if len(live) else 0
    if any(len(row) != width for row in rows):
        raise ValueError(
            f"All rows of live must have the {width} blocks of the first, got {[len(row) for row in rows]}."
        )
    tiles, top = list[Tile](), 0
    for row, same in groupby(rows):
        q, column = range(top, top + size_q * sum(1 for _ in same)), 0
        for alive, group in groupby(row):
            k = range(column, column + size_k * sum(1 for _ in group))
            tiles += [Tile(q, k)] if alive else []
            column = k.stop
        top = q.stop
    return disjoint_mask(tiles, len(rows) * size_q, width * size_k)


def slices(
    q_ranges: Sequence[tuple[int, int]],
    k_ranges: Sequence[tuple[int, int]],
    kinds: Sequence[int | str],
    shape: tuple[int, int] | None = None,
) -> Mask:
    """MagiAttention's slices (arXiv:2505.13211): the queries [start, stop) see the keys [start, stop), by a kind.

    Kinds are 0 "full"; 1 "causal", aligned to the bottom-right corner; 2 "inverse causal", aligned to the top-left
    corner; 3 "bidirectional causal", both. `shape` is (queries, keys) of the stream, else it ends with the last ranges.
    Raises ValueError for lists of different lengths, kinds that do not exist, ranges beyond the stream, and slices that
    share live cells: it says which two and where.
    """
    if not len(q_ranges) == len(k_ranges) == len(kinds):
        raise ValueError(
            f"Every slice has queries, keys and a kind, got {len(q_ranges)}, {len(k_ranges)} and {len(kinds)} of them."
        )
    shape = shape or (max((s for _, s in q_ranges), default=0), max((s for _, s in k_ranges), default=0))
    tiles = []
    for index, (q, k, kind) in enumerate(zip(q_ranges, k_ranges, kinds, strict=True)):
        for (start, stop), length, name in ((q, shape[0], "queries"), (k, shape[1], "keys")):
            if not 0 <= start <= stop <= length:
                raise ValueError(f"Slice {index} has the {name} {(start, stop)}, but the stream has {length} of them.")
        number = KINDS.index(kind) if kind in KINDS else kind
        if not isinstance(number, int) or not 0 <= number < len(KINDS):
            raise ValueError(f"Slice {index} has the kind {kind!r}: give one of {KINDS} or 0 to {len(KINDS) - 1}.")
        low, high = (k[0] - q[0] if number & 2 else -FAR), (k[1] - q[1] if number & 1 else FAR)
        tiles.append(Tile(range(*q), range(*k), low, high))
    live = [(index, cut) for index, tile in enumerate(tiles) if tile.q and tile.k and (cut := tile.trim())]
    check_disjoint([tile for _, tile in live], [f"slice {index}" for index, _ in live])
    return Mask(tuple(tiles), *shape)


def _ranges(lengths: Sequence[int], name: str) -> list[range]:
    """The ranges of the stream that these lengths cover."""
    if any(length < 0 for length in lengths):
        raise ValueError(f"{name} must be 0 or more each, got {list(lengths)}.")
    return [range(start, stop) for start, stop in pairwise(accumulate(lengths, initial=0))]
