"""The benchmark of hybrid models, on CPUs: mixers cost every rank the same, and ranks share the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks/hybrid_models.py"


def test_costs() -> None:
    pytest.importorskip("transformers", minversion="5")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROGRAM)]
    done = subprocess.run(
        [*command, "--tokens", "256", "--steps", "1"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    alone, together = ([float(figure) for figure in line.split()] for line in done.stdout.splitlines()[-2:])
    assert (alone[0], together[0]) == (1, 2)
    for mixers, rest in ((1, 2), (3, 4)):
        assert together[mixers] == alone[mixers] > 0
        assert together[rest] == pytest.approx(alone[rest] / 2, rel=0.1)
