"""What a user gets who installs the wheels without extras: an environment with them, PyTorch and what that requires."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from venv import EnvBuilder

import pytest

ROOT = Path(__file__).parents[1]
NATIVE = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"))[0]


def command(*line: str | Path, folder: Path = ROOT) -> str:
    """Run without the paths and settings of the environment that the tests run in; what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=200)
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
            except PackageNotFoundError:  # required on other platforms
                continue
            pending += [re.split(r"[^\w.-]", line)[0] for line in found.requires or [] if "extra ==" not in line]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment. PyTorch is linked into it, for a copy of it is gigabytes."""
    folder = tmp_path_factory.mktemp("installed")
    for package in ("core", "comms", "adapters"):
        command(
            *(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder / "wheels"),
            folder=ROOT / "packages" / package,
        )
    EnvBuilder(with_pip=True).create(folder / "env")
    environment = {name: str(folder / "env") for name in ("base", "platbase")}
    packages = Path(sysconfig.get_path("purelib", vars=environment))
    for found in required("torch"):
        for name in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(Path(str(found.locate_file(name))))
    python = Path(sysconfig.get_path("scripts", vars=environment)) / "python"
    command(python, "-m", "pip", "install", "--no-index", *(folder / "wheels").glob("*.whl"))
    return python


def test_the_readme_runs_where_only_torch_is(python: Path, tmp_path: Path) -> None:
    alone = "import importlib.util\nassert importlib.util.find_spec('numpy') is None\n"
    (tmp_path / "program.py").write_text(alone + NATIVE + "\ndist.destroy_process_group()\n", encoding="utf-8")
    printed = command(
        *(python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "program.py"), folder=tmp_path
    )
    assert float(printed.rpartition("by ")[2]) < 1e-5
