"""ringattn-core installs without the other packages, and is useful without them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("alone.py")


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def build(folder: Path) -> Path:
    """The wheel of core, by the hatchling of this environment if it has one."""
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    pip("wheel", "--no-deps", *isolation, "--wheel-dir", folder, ROOT / "packages/core")
    (wheel,) = folder.glob("*.whl")
    return wheel


def closure(name: str, found: dict[str, Distribution]) -> dict[str, Distribution]:
    """A distribution and all that it needs, as far as it is installed here."""
    if name not in found:
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            return found
        for text in found[name].requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                closure(requirement.name, found)
    return found


def lend(names: dict[str, Distribution], folder: Path) -> None:
    """Link distributions into another environment: an install of torch would take half a minute.

    A .pth file to the whole of site-packages would lend everything that is installed there.
    """
    for found in names.values():
        tops = {(path.parts[0], path) for path in found.files or [] if path.parts[0] not in ("..", "__pycache__")}
        for top, path in tops:
            source = Path(str(found.locate_file(path))).parents[len(path.parts) - 1] / top
            if source.exists() and not (folder / top).exists():
                (folder / top).symlink_to(source)


def test_core_alone(tmp_path: Path) -> None:
    wheel = build(tmp_path / "wheels")
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin/python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    (packages,) = home.glob("lib/python*/site-packages")
    assert {path.name.partition("-")[0] for path in packages.iterdir()} == {"ringattn_core"}
    lend(closure("torch", {}), packages)

    # -I: neither PYTHONPATH nor the folder of the program is a way around the environment.
    done = subprocess.run([python, "-I", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules, distributed, optional = (line.partition(": ")[2] for line in done.stdout.splitlines())
    # `import torch` imports torch.distributed by itself; what counts is that none of our modules asks for it.
    assert distributed == "[]"
    assert optional == "[]"
    assert int(modules) >= 10


def test_the_transport_is_short() -> None:
    """A transport of one's own takes fewer than 40 lines."""
    source = PROGRAM.read_text(encoding="utf-8")
    assert len(source.partition("class Queues")[2].partition("\n\n\ndef ")[0].splitlines()) < 40
