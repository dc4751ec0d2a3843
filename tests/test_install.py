"""What a user gets who installs the wheels without extras: an environment with them, PyTorch and what that requires."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from venv import EnvBuilder

import pytest

ROOT = Path(__file__).parents[1]
# What the README's program computes, on processes.
PROGRAM = """
import importlib.util

import torch
import torch.distributed as dist

import ringattn

assert importlib.util.find_spec("numpy") is None
dist.init_process_group("gloo")
torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 1024, 8, 64)
cp = ringattn.ContextParallel(layout="zigzag")
whole = cp.unshard(ringattn.attention(*cp.shard(q, k, v), cp=cp, causal=True))
alone = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
if dist.get_rank() == 0:
    print("differs by", (whole - alone.transpose(1, 2)).abs().max().item())
dist.destroy_process_group()
"""


def run(*line: str | Path, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run without the paths and settings of the environment that the tests run in."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=200)


def printed(*line: str | Path, folder: Path = ROOT) -> str:
    """What a command prints that succeeds."""
    done = run(*line, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def required(name: str) -> Iterator[Distribution]:
    """An installed distribution and what it requires, without extras."""
    pending, seen = [name], set[str]()
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name not in seen:
            seen.add(name)
            try:
                yield (found := distribution(name))
            except PackageNotFoundError:  # required on another platform
                continue
            pending += [re.split(r"[^\w.-]", line)[0] for line in found.requires or [] if "extra ==" not in line]


def install(folder: Path) -> Path:
    """The interpreter of a new environment in a folder. PyTorch is linked into it, for a copy of it is gigabytes."""
    for package in ("core", "comms", "adapters"):
        build = sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder / "wheels"
        printed(*build, folder=ROOT / "packages" / package)
    EnvBuilder(with_pip=True).create(folder / "env")
    environment = {name: str(folder / "env") for name in ("base", "platbase")}
    packages = Path(sysconfig.get_path("purelib", vars=environment))
    for found in required("torch"):
        for name in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(Path(str(found.locate_file(name))))
    python = Path(sysconfig.get_path("scripts", vars=environment)) / "python"
    printed(python, "-m", "pip", "install", "--no-index", *(folder / "wheels").glob("*.whl"))
    return python


# One test, so that there is one installation, however many workers there are.
def test_the_wheels_alone(tmp_path: Path, subtests: pytest.Subtests) -> None:
    python = install(tmp_path)
    with subtests.test("what is installed fits together"):
        assert "No broken requirements found" in printed(python, "-m", "pip", "check")
    with subtests.test("processes over gloo, without NumPy"):
        (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
        torchrun = python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
        assert float(printed(*torchrun, "program.py", folder=tmp_path).rpartition("by ")[2]) < 1e-5
    with subtests.test("the version"):
        project = (ROOT / "packages" / "adapters" / "pyproject.toml").read_text(encoding="utf-8")
        version = printed(python, "-c", "import ringattn; print(ringattn.__version__)")
        assert version.strip() == tomllib.loads(project)["project"]["version"]
    with subtests.test("extras that are missing"):
        refused = run(python.with_name("ringattn"), "plan")
        assert refused.returncode == 1 and "Traceback" not in refused.stderr
        assert "The command line needs rich and typer: python -m pip install 'ringattn[cli]'" in refused.stderr
        wanted = "ringattn.hf needs transformers and accelerate: python -m pip install 'ringattn[hf]'"
        assert wanted in run(python, "-c", "import ringattn.hf").stderr
    with subtests.test("to import it takes hardly longer than to import torch"):
        ours, torch = shortest(python, "import ringattn\nfor name in ringattn.__all__: getattr(ringattn, name)")
        assert ours <= 1.15 * torch


def shortest(python: Path, program: str) -> tuple[float, float]:
    """The processor time of a program and of importing torch, in seconds: the shortest of several, taken in turns."""
    clock = "\nimport time\nprint(time.process_time())"
    best = [float("inf")] * 2
    for _ in range(8):
        taken = [float(printed(python, "-c", program + clock)) for program in (program, "import torch")]
        best = [min(pair) for pair in zip(best, taken, strict=True)]
        if best[0] <= 1.15 * best[1]:  # More runs could only show that one of them was disturbed.
            break
    return best[0], best[1]
