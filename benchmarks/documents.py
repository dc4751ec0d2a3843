"""What is predicted for packs of documents, by layout and route, and how far `auto` is from the best for each pack.

    python benchmarks/documents.py --ranks 4 8 --tokens 8192 --heads 32 8

Needs no GPU. Each pack is drawn anew, from lengths like those of corpora. A line has the mean over the packs: of one
GPU's time, divided by the ranks, as a share of theirs, for each route forward and with backward, in %; and of what
`auto` loses to the best route of each pack, with the most that it loses in one: it looks at a few ranks and documents.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import product
from statistics import fmean

from peers import documents

from ringattn_core.look.auto import CANDIDATES, auto_routes, candidates
from ringattn_core.look.machine import MACHINES
from ringattn_core.look.shape import Shape
from ringattn_core.look.simulate import predict
from ringattn_core.plan.layout import Sharding, layout_named
from ringattn_core.plan.tile import CAUSAL


def seconds(sharding: Sharding, shape: Shape, gpu: str) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Of a forward pass, by its route, and with backward, by both."""
    forward, backward = candidates(sharding, CAUSAL)
    forecast = partial(predict, shape=shape, machine=MACHINES[gpu], one_sided=True)
    first = {name: forecast(plans).time for name, plans in forward.items()}
    both = {
        (name, then): forecast(forward[name], backward=backward[then]).time
        for name, then in product(CANDIDATES, repeat=2)
    }
    return first, both


def line(layout: str, cp_size: int, tokens: int, shape: Shape, gpu: str, packs: int) -> str:
    shares = {name: list[tuple[float, float]]() for name in CANDIDATES}
    lost = list[tuple[float, float]]()
    for seed in range(packs):
        borders = tuple(documents(tokens * cp_size, seed))
        sharding = Sharding(layout_named(layout), borders, cp_size, per_sequence=layout != "contiguous")
        forward, both = seconds(sharding, shape, gpu)
        alone = seconds(Sharding(layout_named("contiguous"), borders, 1), shape, gpu)
        one = alone[0]["ring"] / cp_size, alone[1]["ring", "ring"] / cp_size
        for name in CANDIDATES:
            shares[name].append((one[0] / forward[name], one[1] / both[name, name]))
        auto = auto_routes(sharding, CAUSAL, shape, MACHINES[gpu], one_sided=True)
        lost.append((forward[auto.forward] / min(forward.values()) - 1, both[auto] / min(both.values()) - 1))
    cells = [" / ".join(f"{fmean(kind) * 100:5.1f}" for kind in zip(*shares[name], strict=True)) for name in CANDIDATES]
    behind = " / ".join(f"{fmean(kind) * 100:4.1f} ({max(kind) * 100:4.1f})" for kind in zip(*lost, strict=True))
    return f"| {layout:10} | {cp_size:5} | {tokens:6} | {' | '.join(cells)} | {behind} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", default=["zigzag", "contiguous", "balanced"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192], help="on each rank")
    parser.add_argument("--heads", type=int, nargs=2, default=[32, 8], metavar=("Q", "KV"))
    parser.add_argument("--gpu", choices=MACHINES, default="h200")
    parser.add_argument("--packs", type=int, default=8)
    given = parser.parse_args(arguments)
    shape = Shape(*given.heads, 128, grad_itemsize=2)
    print(f"| layout     | ranks | tokens | {' | '.join(f'{name:13}' for name in CANDIDATES)} | auto loses (at most) |")
    for tokens in given.tokens:
        for cp_size in given.ranks:
            for layout in given.layouts:
                print(line(layout, cp_size, tokens, shape, given.gpu, given.packs))


if __name__ == "__main__":
    main()
