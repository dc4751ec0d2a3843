"""The rows of the comparison name functions that there are; what they measure needs two GPUs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import ringattn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import against_peers
import seed
from play_ranks import PACKINGS

from ringattn_core.layout import LAYOUTS, layout_named
from ringattn_core.route import route_named


@pytest.mark.parametrize("row", against_peers.ROWS.values(), ids=against_peers.ROWS)
def test_rows(row: against_peers.Row) -> None:
    assert (
        callable(layout_named(row.layout))
        and row.seed_layout in {"", *LAYOUTS}
        and set(row.packings) <= PACKINGS.keys()
    )
    assert callable(getattr(ringattn, row.seed)), "ours have the names of ring-flash-attn"
    assert all(name == "auto" or callable(route_named(name)) for name in row.routes)
    assert ("varlen" in row.seed) == bool(row.packings)


def test_packings_fill_the_tokens_of_a_rank() -> None:
    for borders in PACKINGS.values():
        assert borders[0] == 0 and borders[-1] == 8192 and list(borders) == sorted(borders)


def test_a_kernel_without_an_interface_like_flash_attn_is_told() -> None:
    with pytest.raises(ImportError, match="cudnn has none like them"):
        seed.load("cudnn")
