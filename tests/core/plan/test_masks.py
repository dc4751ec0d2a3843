"""Every maker against the rule that it states, and the masks that MagiAttention names written with ours."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringattn_core.plan import masks
from ringattn_core.plan.masks import Mask

Rule = Callable[[int, int], bool]
DOCUMENTS = [0] * 5 + [1] * 3 + [2] * 4
CHUNK = [0] * 4 + [1] * 4 + [2] * 4
PREFIX_OF = [3, 3, 3, 3, 3, 7, 7, 7, 9, 9, 9, 9]  # where the prefix of each token's document ends

# The masks that MagiAttention names, over 12 tokens: documents of 5, 3 and 4, blocks of 4.
NAMED: dict[str, tuple[Mask, Rule]] = {
    "full": (masks.full(12), lambda _q, _k: True),
    "causal": (masks.causal(12), lambda q, k: k <= q),
    "varlen full": (masks.packed([5, 3, 4], window=(-1, -1)), lambda q, k: DOCUMENTS[q] == DOCUMENTS[k]),
    "varlen causal": (masks.packed([5, 3, 4]), lambda q, k: DOCUMENTS[q] == DOCUMENTS[k] and k <= q),
    "sliding window": (masks.window(12, 3), lambda q, k: q - 3 <= k <= q),
    "causal blockwise": (
        masks.blocks([[1, 0, 0], [1, 1, 0], [1, 1, 1]], 4),
        lambda q, k: CHUNK[k] <= CHUNK[q],
    ),
    "varlen block causal": (
        masks.blocks([[1, 0, 0], [1, 1, 0], [1, 1, 1]], 4) & masks.packed([5, 3, 4], window=(-1, -1)),
        lambda q, k: CHUNK[k] <= CHUNK[q] and DOCUMENTS[q] == DOCUMENTS[k],
    ),
    "prefix-LM": (masks.prefix(12, 4), lambda q, k: k <= q or (q < 4 and k < 4)),
    "prefix-LM document": (
        masks.packed([5, 3, 4]) | masks.two_way([range(3), range(5, 7), range(8, 9)]),
        lambda q, k: DOCUMENTS[q] == DOCUMENTS[k] and (k <= q or max(q, k) < PREFIX_OF[q]),
    ),
    "shared question": (
        masks.shared_prefix(5, [3, 4]),
        lambda q, k: k <= q and (k < 5 or DOCUMENTS[q] == DOCUMENTS[k]),
    ),
    "block sliding window": (
        masks.blocks([[1, 0, 0], [1, 1, 0], [0, 1, 1]], 4),
        lambda q, k: CHUNK[q] - 1 <= CHUNK[k] <= CHUNK[q],
    ),
    "global + window": (masks.window(12, 3) | masks.first(12, 2), lambda q, k: k <= q and (q - 3 <= k or k < 2)),
}


def follows(mask: Mask, rule: Rule) -> None:
    shape = range(mask.num_queries), range(mask.num_keys)
    assert mask.dense() == [bytes(rule(q, k) for k in shape[1]) for q in shape[0]]


@pytest.mark.parametrize("name", NAMED)
def test_the_masks_that_magiattention_names(name: str) -> None:
    mask, rule = NAMED[name]
    assert (mask.num_queries, mask.num_keys) == (12, 12)
    follows(mask, rule)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 4)), max_size=9))
def test_a_tree_in_any_order_of_its_nodes(nodes: list[tuple[int, int]]) -> None:
    parents = [drawn % (index + 1) - 1 for index, (drawn, _) in enumerate(nodes)]
    lengths = [length for _, length in nodes]
    node = [index for index, length in enumerate(lengths) for _ in range(length)]

    def sees(q: int, k: int) -> bool:
        above = node[q]
        while above > node[k]:
            above = parents[above]
        return above == node[k] and k <= q

    follows(masks.tree(parents, lengths), sees)


def test_several_prompts_have_their_answers() -> None:
    together = masks.shared_prefix([3, 2], [[1, 2], [3]])
    assert together == masks.tree([-1, 0, 0, -1, 3], [3, 1, 2, 2, 3])


def test_the_last_query_stands_at_the_last_key() -> None:
    follows(masks.causal(3, 5), lambda q, k: k <= q + 2)
    follows(masks.causal(5, 3), lambda q, k: k <= q - 2)
    follows(masks.window(8, 2, 1), lambda q, k: q - 2 <= k <= q + 1)


def test_chunks_and_ragged_ends() -> None:
    follows(masks.chunked(10, 4), lambda q, k: q // 4 == k // 4 and k <= q)
    follows(masks.first(3, 8), lambda q, k: k <= q)
    follows(masks.blocks([[1, 0, 1], [1, 0, 1]], (2, 3)), lambda _q, k: k // 3 != 1)


def test_masks_of_several_streams_lie_end_to_end() -> None:
    together = masks.end_to_end([masks.causal(3, 5), masks.prefix(4, 2), masks.window(0, 1), masks.window(5, 1)])
    assert (together.num_queries, together.num_keys) == (12, 14)

    def sees(q: int, k: int) -> bool:
        if q < 3:
            return k <= q + 2
        if q < 7:
            return 5 <= k <= max(q + 2, 6)
        return k >= 9 and q + 1 <= k <= q + 2

    follows(together, sees)
    assert masks.end_to_end([]) == Mask((), 0, 0)


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize(("q", "k"), [((0, 4), (1, 7)), ((1, 7), (0, 4)), ((2, 5), (2, 5))])
def test_slices_have_the_kinds_of_magiattention(kind: int, q: tuple[int, int], k: tuple[int, int]) -> None:
    def rule(i: int, j: int) -> bool:
        inside = q[0] <= i < q[1] and k[0] <= j < k[1]
        return inside and (not kind & 1 or j - k[1] <= i - q[1]) and (not kind & 2 or j - k[0] >= i - q[0])

    follows(masks.slices([q], [k], [kind], (8, 8)), rule)
    assert masks.slices([q], [k], [masks.KINDS[kind]]) == masks.slices([q], [k], [kind])


REFUSED: dict[str, Callable[[], Mask]] = {
    "slice 0 and slice 2 overlap in rows 2 to 3 and columns 1 to 3": lambda: masks.slices(
        [(0, 4), (4, 6), (2, 5)], [(0, 4), (6, 8), (1, 5)], [0, 0, 0]
    ),
    "Slice 0 has the keys": lambda: masks.slices([(0, 4)], [(0, 9)], [0], (4, 8)),
    "Slice 0 has the kind 4": lambda: masks.slices([(0, 4)], [(0, 4)], [4]),
    "Slice 0 has the kind 'diagonal'": lambda: masks.slices([(0, 4)], [(0, 4)], ["diagonal"]),
    "got 1, 1 and 0 of them": lambda: masks.slices([(0, 4)], [(0, 4)], []),
    "parent of node 1": lambda: masks.tree([-1, 1], [2, 2]),
    "2 parents and 1 lengths": lambda: masks.tree([-1, 0], [2]),
    "lengths must be 0 or more": lambda: masks.packed([3, -1]),
    "2 sequences of queries": lambda: masks.packed([3, 1], key_lengths=[4]),
    "overlap in rows 3 to 4": lambda: masks.two_way([range(5), range(3, 7)]),
    "range within 0 to 4": lambda: masks.two_way([range(5)], 4),
    "A prefix of 4 tokens": lambda: masks.prefix(4, 5),
    "Chunks of 1 token or more": lambda: masks.chunked(4, 0),
    "got 2 and -4": lambda: masks.chunked(-4, 2),
    "got -3 of 12": lambda: masks.first(12, -3),
    "A block has 1 token or more": lambda: masks.blocks([[True]], 0),
    "All rows of live": lambda: masks.blocks([[True], [True, False]], 2),
    "Each of 2 prompts": lambda: masks.shared_prefix([3, 2], [[1]]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_masks_of_many_tiles_are_made_quickly() -> None:
    """With much room for a busy machine: what is quadratic takes minutes."""
    began = process_time()
    assert len(masks.packed([100] * 10_000).tiles) == 10_000
    assert len(masks.tree([-1, *(i // 2 for i in range(1999))], [16] * 2000).tiles) > 2000
    assert len(masks.tree(range(-1, 1999), [16] * 2000).tiles) == 3999
    assert process_time() - began < 5
