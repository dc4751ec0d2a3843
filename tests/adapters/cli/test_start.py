"""What is imported when the command line starts, and how long that takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, time
atexit.register(lambda: print(*sys.modules, time.process_time(), file=sys.stderr))
from ringattn.cli.entry import main
main()
"""


@pytest.mark.parametrize("arguments", ["--version", "--help", "plan", "draw", "plan --help", "demo --help"])
def test_it_starts_without_pytorch_in_tenths_of_a_second(arguments: str) -> None:
    taken = []
    for _ in range(5):
        command = [sys.executable, "-c", PROGRAM, *arguments.split()]
        *modules, seconds = subprocess.run(command, capture_output=True, text=True, check=True).stderr.split()
        assert "rich" in modules or "typer" in modules
        assert not {"torch", "numpy", "transformers"} & {*modules}
        taken.append(float(seconds))
        if min(taken) < 0.7:  # of processor time; other processes of the machine may have disturbed one
            return
    raise AssertionError(f"{arguments}: {taken} s")
