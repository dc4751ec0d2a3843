"""How much `auto` loses to the best pair of routes for each pack, by its own predictions, over random problems.

    python benchmarks/auto_regret.py --problems 200

Packs, layouts, windows, heads and 2 to 16 ranks are drawn anew for each. Prints the median, the 95th percentile and the
most that is lost, with the worst problems; exits 1 over 5 % for the second or 20 % for the third.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import accumulate, product
from random import Random
from typing import NamedTuple

from ringattn_core.look.auto import CANDIDATES, Routes, auto_routes, candidates
from ringattn_core.look.machine import H200
from ringattn_core.look.shape import Shape
from ringattn_core.look.simulate import predict
from ringattn_core.plan.layout import Sharding, balanced, contiguous, striped, windowed, zigzag
from ringattn_core.plan.tile import CAUSAL, Window

LAYOUTS = [(zigzag, True), (contiguous, False), (contiguous, True), (striped, False), (balanced, False)]
TYPICAL, MOST = 0.05, 0.20


class Problem(NamedTuple):
    """What `auto` is asked for."""

    sharding: Sharding
    window: Window
    shape: Shape
    one_sided: bool

    def times(self) -> dict[Routes, float]:
        """Predicted for each pair of routes, planned for the very lengths."""
        forward, backward = candidates(self.sharding, self.window)
        return {
            Routes(first, then): predict(
                forward[first], self.shape, H200, backward=backward[then], one_sided=self.one_sided
            ).time
            for first, then in product(CANDIDATES, repeat=2)
        }

    def lost(self) -> float:
        """By the routes that `auto` takes, as a share of the least time."""
        chosen = auto_routes(self.sharding, self.window, self.shape, H200, one_sided=self.one_sided)
        times = self.times()
        return times[chosen] / min(times.values()) - 1

    def __str__(self) -> str:
        sharding, shape = self.sharding, self.shape
        layout = sharding.layout.__name__ + ("" if sharding.per_sequence else " of the stream")
        return (
            f"{layout}, {sharding.cp_size} ranks, {len(sharding.cu_seqlens) - 1} sequences of "
            f"{sharding.cu_seqlens[-1]} tokens, window {self.window}, {shape.num_heads}:{shape.num_kv_heads} heads, "
            f"{'one' if self.one_sided else 'two'}-sided"
        )


def problems(seed: int, most_ranks: int = 16, most_tokens: int = 16384) -> Iterator[Problem]:
    """Without end."""
    draw = Random(seed)
    while True:
        cp_size = draw.choice([size for size in (2, 3, 4, 6, 8, 12, 16) if size <= most_ranks])
        tokens = cp_size * draw.choice([local for local in (1024, 2048, 4096, 8192, 16384) if local <= most_tokens])
        layout, per_sequence = draw.choice(LAYOUTS)
        window = draw.choice([CAUSAL, CAUSAL, (4095, 0), (1023, 0)])
        if window != CAUSAL and draw.random() < 0.3:
            layout, per_sequence = windowed(window[0] + 1), True
        borders = (0, *accumulate(_lengths(draw, tokens)))
        heads = draw.choice([(32, 8), (64, 8), (16, 16)])
        one_sided = draw.random() < 0.5
        shape = Shape(*heads, 128, grad_itemsize=2 if one_sided else 4)
        yield Problem(Sharding(layout, borders, cp_size, per_sequence), window, shape, one_sided)


def _lengths(draw: Random, tokens: int) -> list[int]:
    """Of one sequence, of equal ones, of one long and many short ones, or of documents."""
    kind = draw.choice(["one", "equal", "mixed", "log-normal", "uniform"])
    if kind in ("one", "equal", "mixed"):
        long = {"one": tokens, "equal": 0, "mixed": tokens // 2}[kind]
        count = draw.choice([2, 3, 5, 8, 16, 30, 60, 100])
        short = [(tokens - long) * (index + 1) // count - (tokens - long) * index // count for index in range(count)]
        return [length for length in (long, *short) if length]
    found = list[int]()
    while (left := tokens - sum(found)) > 0:
        length = draw.lognormvariate(7.05, 1.1) if kind == "log-normal" else draw.uniform(1, tokens / 4)
        found.append(min(left, max(1, round(length))))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=16, help="at most")
    parser.add_argument("--tokens", type=int, default=16384, help="of a rank, at most")
    given = parser.parse_args(arguments)
    drawn = (
        each for _, each in zip(range(given.problems), problems(given.seed, given.ranks, given.tokens), strict=False)
    )
    lost = sorted(((each.lost(), str(each)) for each in drawn), reverse=True)
    median, typical, most = (lost[len(lost) * share // 100][0] for share in (50, 5, 0))
    print(f"{len(lost)} problems: auto loses {median:.1%} in the median, {typical:.1%} at 95 %, {most:.1%} at most")
    for share, problem in lost[:5]:
        print(f"{share:6.1%}  {problem}")
    return int(typical > TYPICAL or most > MOST)


if __name__ == "__main__":
    raise SystemExit(main())
