"""The table of tokens per second, of a model that takes seconds on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import decode

SMALL = "--tokens 2 --layers 2 --hidden 32 --heads 4 --kv-heads 2 --head-dim 8 --vocabulary 50 --rows 2 --dtype float32"


def test_a_row_for_each_cache_and_size(capsys: pytest.CaptureFixture[str]) -> None:
    decode.main([*SMALL.split(), "--cache", "64", "96", "--sizes", "1", "3", "--device", "cpu"])
    about, header, *table = (line.split() for line in capsys.readouterr().out.splitlines())
    assert "heads" in about and header[:2] == ["cache", "ranks"]
    assert [row[:2] for row in table] == [[length, size] for length in ("64", "96") for size in ("alone", "1", "3")]
    for row in table:
        prefill, of_prefill, rate, of_rate, token, attention = map(float, row[2:])
        assert prefill > 0 and attention > 0 and rate == pytest.approx(2e3 / token, rel=0.05)
        assert of_prefill > 0 and of_rate > 0 and (row[1] != "alone" or of_prefill == of_rate == 1.0)
