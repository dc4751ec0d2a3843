"""The rows of the comparison name functions that there are; what they measure needs two GPUs."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

import ringattn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import against_peers
import peers
import seed
from play_ranks import PACKINGS

from ringattn_core.plan.layout import LAYOUTS, layout_named
from ringattn_core.plan.route import route_named


@pytest.mark.parametrize("row", peers.ROWS.values(), ids=peers.ROWS)
def test_rows(row: peers.Row) -> None:
    assert callable(layout_named(row.layout)) and row.seed_layout in {"", *LAYOUTS}
    assert set(row.packings) <= {*PACKINGS, *peers.DOCUMENTS}
    assert callable(getattr(ringattn, row.seed)), "ours have the names of ring-flash-attn"
    assert row.route == "auto" or callable(route_named(row.route))
    assert ("varlen" in row.seed) == bool(row.packings)


def test_packings_fill_the_tokens_of_a_rank() -> None:
    for borders in PACKINGS.values():
        assert borders[0] == 0 and borders[-1] == 8192 and list(borders) == sorted(borders)


def test_documents_are_as_long_as_said() -> None:
    borders = peers.documents(65536)
    lengths = [stop - start for start, stop in pairwise(borders)]
    assert borders[0] == 0 and borders[-1] == 65536 and all(length % 64 == 0 for length in lengths)
    assert max(lengths) <= 16384 and 700 < median(lengths) < 1900 and borders == peers.documents(65536)


def test_rows_of_the_same_sequences_and_window_share_one_gpu() -> None:
    named = against_peers.groups(peers.ROWS)
    assert named[0] == ["zigzag", "stripe", "ring"] and ["window 4096"] in named
    assert sorted(name for names in named for name in names) == sorted(peers.ROWS)


def test_a_kernel_without_an_interface_like_flash_attn_is_told() -> None:
    with pytest.raises(ImportError, match="reference has none like them"):
        seed.load("reference")
