"""Runs a program of checks of Triton kernels on CPUs, where Triton is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringattn_core.run.accumulate import has_triton


def run(program: Path) -> None:
    """In a process of its own, because Triton reads the variable when it is imported; every check has to be printed."""
    if not has_triton():
        pytest.skip(
            "Triton, whose interpreter runs GPU kernels on a CPU, is not installed: `hatch run triton:run` has it"
        )
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    expected = program.read_text(encoding="utf-8").count("\ndef check_")
    assert expected and done.stdout.count("check_") == expected
