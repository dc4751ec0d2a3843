"""The table of predictions for packs of documents."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import documents

from ringattn_core.look.auto import CANDIDATES, typical
from ringattn_core.plan.layout import Sharding, balanced


def work(cu_seqlens: tuple[int, ...]) -> int:
    """Cells of a causal mask, twice."""
    return sum((stop - start) ** 2 for start, stop in pairwise(cu_seqlens))


@pytest.mark.parametrize("tokens", [32768, 1 << 20])
def test_typical_documents_have_the_work_of_those_that_are_drawn(tokens: int) -> None:
    for seed in range(20):
        pack = tuple(documents.documents(tokens, seed))
        found, _, times = typical(Sharding(balanced, pack, 4))
        assert times * (len(found.cu_seqlens) - 1) == pytest.approx(len(pack) - 1)
        assert times * work(found.cu_seqlens) == pytest.approx(work(pack), rel=0.1)


def test_a_line_for_every_size_and_layout(capsys: pytest.CaptureFixture[str]) -> None:
    documents.main(["--ranks", "2", "4", "--tokens", "8192", "--packs", "3", "--layouts", "contiguous", "balanced"])
    _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines())
    assert [line[:3] for line in lines] == [
        [layout, ranks, "8192"] for ranks in ("2", "4") for layout in ("contiguous", "balanced")
    ]
    shares = [[[float(share) for share in cell.split("/")] for cell in line[3 : 3 + len(CANDIDATES)]] for line in lines]
    assert all(0 < share <= 100 for line in shares for cell in line for share in cell)
    for whole, dealt in (shares[:2], shares[2:]):
        assert all(ours > theirs for ours, theirs in zip(max(dealt), max(whole), strict=True))
    assert all(line[-1].startswith("0.0") for line in lines), "forward, auto is the best here"
