"""Masks for users: the makers of `ringattn_core.plan.masks`; `python -m ringattn.masks tree` draws an example."""

from __future__ import annotations

import sys

from ringattn_core.plan.masks import (
    Mask,
    blocks,
    causal,
    chunked,
    end_to_end,
    first,
    full,
    of_dense,
    of_mod,
    packed,
    prefix,
    shared_prefix,
    slices,
    tree,
    two_way,
    window,
)

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


def examples() -> dict[str, Mask]:
    """A small mask of every maker, by its name."""
    return {
        "blocks": blocks([[1, 0, 0], [1, 1, 0], [0, 1, 1]], 4),
        "causal": causal(12),
        "chunked": chunked(12, 4),
        "end_to_end": end_to_end([prefix(6, 3), window(6, 2)]),
        "first": window(12, 2) | first(12, 2),
        "full": full(12),
        "of_dense": of_dense([[1, 0, 1], [0, 1, 0], [1, 0, 1]]),
        "of_mod": of_mod(lambda _b, _h, q, k: k <= q and q - k < 3, 12),
        "packed": packed([5, 3, 4]),
        "prefix": prefix(12, 4),
        "shared_prefix": shared_prefix(4, [3, 2, 3]),
        "slices": slices([(0, 6), (6, 12)], [(0, 6), (0, 12)], ["full", "causal"]),
        "tree": tree([-1, 0, 1, 1, 0], [3, 2, 2, 2, 3]),
        "two_way": causal(12) | two_way([range(2, 5), range(7, 11)]),
        "window": window(12, 3),
    }


def main(names: list[str]) -> int:
    """Draw the examples of these makers, all without a name; 2 if one does not exist."""
    drawn = examples()
    if unknown := [name for name in names if name not in drawn]:
        print(f"No maker of masks is named {', '.join(unknown)}: there are {', '.join(drawn)}.", file=sys.stderr)
        return 2
    for name in names or drawn:
        print(f"{name}\n{drawn[name].draw()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
