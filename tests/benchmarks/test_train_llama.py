"""The benchmark of training, tiny and on CPUs: the losses of one process, and they fall."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks/train_llama.py"


def test_losses_agree() -> None:
    """FSDP2 with mixed precision, checkpointed layers and a chunked loss, over two ranks and over one."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROGRAM)]
    done = subprocess.run(
        [*command, "--tiny", "--steps", "4"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    *_, table = done.stdout.partition("1 process")
    steps = [line.split() for line in table.splitlines() if "loss, step" in line]
    alone, together = ([float(step[column]) for step in steps] for column in (3, 4))
    assert len(alone) == 4 and together == pytest.approx(alone, rel=1e-5)
    assert alone == sorted(alone, reverse=True) and alone[0] - alone[-1] > 0.1
    assert float(table.splitlines()[-1].split()[-1]) == 0.0  # no GPU, no figure of its memory
