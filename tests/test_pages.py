"""The examples on pages of concepts and in READMEs of packages, and the pictures: they show what the library does."""

from __future__ import annotations

import doctest
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ringattn_core.kernels import choose

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONCEPTS = sorted((DOCS / "concepts").glob("*.md"))
PAGES = [*CONCEPTS, *sorted(ROOT.glob("packages/*/README.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_print_what_the_page_shows(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A page may add a kernel of its own, for itself alone.
    monkeypatch.setattr(choose, "KERNELS", dict(choose.KERNELS))
    # All examples of a page are one session. What is no example is blanked, so that lines keep their numbers.
    text = "\n".join(examples(page.read_text(encoding="utf-8")))
    # What a session defines can be imported from `__main__`, as in any interpreter.
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    session = doctest.DocTestParser().get_doctest(text, vars(main), page.name, str(page), 0)
    session.globs = vars(main)
    report: list[str] = []
    failed, _ = doctest.DocTestRunner().run(session, out=report.append)
    assert not failed, "".join(report)


def examples(page: str) -> Iterator[str]:
    """The lines of a page, empty where they are not in a fence of examples."""
    inside = False
    for line in page.splitlines():
        fence = line.startswith("```")
        yield line if inside and not fence else ""
        inside = line == "```pycon" if fence else inside


def test_every_page_of_concepts_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert {page.stem for page in CONCEPTS} == set(re.findall(r"^concepts/(.+)$", index, re.MULTILINE))


def test_pictures_are_current() -> None:
    spec = importlib.util.spec_from_file_location("draw_pictures", DOCS / "draw_pictures.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    drawn = {path.name: path.read_text(encoding="utf-8") for path in script.FOLDER.glob("*.svg")}
    assert script.pictures() == drawn, "draw them again: hatch run python docs/draw_pictures.py"


def test_drawing_needs_no_torch() -> None:
    # Whoever writes a page may have no torch at hand.
    program = "import sys, runpy; runpy.run_path(sys.argv[1]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", program, str(DOCS / "draw_pictures.py")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
