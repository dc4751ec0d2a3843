"""The fused sums without a GPU, where Triton is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringattn_core.run.accumulate import has_triton

PROGRAM = Path(__file__).with_name("fused.py")


@pytest.mark.skipif(not has_triton(), reason="Triton, whose interpreter runs the fused sums on a CPU, is not installed")
def test_the_fused_sums_are_the_eager_ones() -> None:
    """In a process of their own: Triton looks at the variable when it is imported."""
    program = [sys.executable, str(PROGRAM)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("check_") == 6
