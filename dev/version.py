"""The version of all three packages: `hatch run version 0.2.0` sets it, `hatch run version` prints it.

They share one version, and each asks for the others of the same minor version. CITATION.cff states it too.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("core", "comms", "adapters")
VERSION = re.compile(r'(?m)^version = "(.*)"$')
SIBLING = re.compile(r'"(ringattn(?:-\w+)?(?:\[\w+\])?)~=[\d.]+"')
CITED = re.compile(r"(?m)^version: .*$")


def projects(root: Path) -> list[Path]:
    """The files that state the version of a package."""
    return [root / "packages" / package / "pyproject.toml" for package in PACKAGES]


def version(root: Path = ROOT) -> str:
    """The version that all packages have. Raises ValueError where they differ."""
    found = {VERSION.findall(path.read_text(encoding="utf-8"))[0] for path in projects(root)}
    if len(found) != 1:
        raise ValueError(f"The packages have different versions: {sorted(found)}.")
    return str(found.pop())


def bump(new: str, root: Path = ROOT) -> None:
    """Give all packages a version. Raises ValueError for what is none."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", new):
        raise ValueError(f"A version is three numbers, as in 0.2.0, got {new!r}.")
    minor = new.rpartition(".")[0]
    for path in projects(root):
        text = VERSION.sub(f'version = "{new}"', path.read_text(encoding="utf-8"), count=1)
        path.write_text(SIBLING.sub(rf'"\1~={minor}.0"', text), encoding="utf-8")
    citation = root / "CITATION.cff"
    citation.write_text(CITED.sub(f"version: {new}", citation.read_text(encoding="utf-8")), encoding="utf-8")


def main(arguments: list[str]) -> str | None:
    """Returns what is wrong, if anything is."""
    try:
        match arguments:
            case []:
                print(version())
            case ["--is", expected] if expected != version():
                return f"The packages have the version {version()}, not {expected}."
            case ["--is", _]:
                pass
            case [new]:
                bump(new)
                print(version())
            case _:
                return "Say one version, or none to see it."
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
