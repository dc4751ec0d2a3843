"""Masks for users: the makers of `ringattn_core.plan.masks`; `python -m ringattn.masks tree` draws an example."""

from __future__ import annotations

import sys

from ringattn_core.plan import masks as makers
from ringattn_core.plan.masks import *  # noqa: F403 - its __all__ is the only list of makers

__all__ = [*makers.__all__]  # noqa: PLE0604 - they are strings


def examples() -> dict[str, makers.Mask]:
    """A small mask of every maker, by its name."""
    return {
        "blocks": makers.blocks([[1, 0, 0], [1, 1, 0], [0, 1, 1]], 4),
        "causal": makers.causal(12),
        "chunked": makers.chunked(12, 4),
        "end_to_end": makers.end_to_end([makers.prefix(6, 3), makers.window(6, 2)]),
        "first": makers.window(12, 2) | makers.first(12, 2),
        "full": makers.full(12),
        "of_dense": makers.of_dense([[1, 0, 1], [0, 1, 0], [1, 0, 1]]),
        "of_mod": makers.of_mod(lambda _b, _h, q, k: k <= q and q - k < 3, 12),
        "packed": makers.packed([5, 3, 4]),
        "prefix": makers.prefix(12, 4),
        "shared_prefix": makers.shared_prefix(4, [3, 2, 3]),
        "slices": makers.slices([(0, 6), (6, 12)], [(0, 6), (0, 12)], ["full", "causal"]),
        "tree": makers.tree([-1, 0, 1, 1, 0], [3, 2, 2, 2, 3]),
        "two_way": makers.causal(12) | makers.two_way([range(2, 5), range(7, 11)]),
        "window": makers.window(12, 3),
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
