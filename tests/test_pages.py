"""The examples on pages of concepts and in READMEs of packages, and the pictures: they show what the library does."""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import ringattn
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


def script(name: str) -> ModuleType:
    """A script of docs as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_are_current() -> None:
    pictures = script("draw_pictures")
    drawn = pictures.pictures()
    found = {path.name: path.read_text(encoding="utf-8") for path in pictures.FOLDER.glob("*.svg")}
    found = {name: text for name, text in found.items() if not name.startswith("how-fast-")}
    assert drawn == found, "draw them again: hatch run python docs/draw_pictures.py"


def test_tables_of_kernels_are_current() -> None:
    tables = script("kernel_table")
    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.page(text) == text, "make them again: hatch run python docs/kernel_table.py"
    assert "| Hopper (9.x) | `flash_attn_4`, `flash_attn_3`, " in text and text.count("`reference` |") > 8


@pytest.mark.parametrize("name", script("make_notebook").PAGES)
def test_notebooks_are_made_from_their_pages_and_run(name: str) -> None:
    maker = script("make_notebook")
    path = maker.TUTORIALS / f"{name}.ipynb"
    assert maker.notebook(name) == path.read_text(encoding="utf-8"), "make it again: python docs/make_notebook.py"
    names: dict[str, object] = {"__name__": "__main__"}
    code = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 5
    for cell in code:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec("".join(cell["source"]), names)
        shown = "".join(line for output in cell["outputs"] for line in output["text"])
        # Spaces at the ends of lines are those of bars and no reader sees them.
        assert tidy(printed.getvalue()) == tidy(shown), cell["id"]


def tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def test_the_ten_names_that_users_import() -> None:
    page = (DOCS / "api/ringattn.md").read_text(encoding="utf-8")
    names = re.findall(r"(?m)^(ringattn[\w.]+) from ([\w.]+)$", page)
    assert len(names) == 10
    for public, module in names:
        pytest.importorskip("transformers") if ".hf." in public else None
        defined = getattr(importlib.import_module(module), public.rpartition(".")[2])
        assert defined is pkgutil.resolve_name(public) and defined.__module__ == module
    rest = {name for name in ringattn.__all__ if not name.endswith(("_func", "_cu_seqlens"))}
    assert rest == {public.rpartition(".")[2] for public, _ in names if public.count(".") == 1}


def test_every_module_is_on_a_page_of_the_api() -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in DOCS.glob("api/*.md")}
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert pages.keys() == set(re.findall(r"(?m)^api/(.+)$", index))
    asked = re.findall(r"(?m)^```\{package-api\} ([\w.]+)\n(:flat:)?", "".join(pages.values()))
    folders = {name for name, flat in asked if not flat}
    for path in ROOT.glob("packages/*/src/*/**/*.py"):
        parts = path.relative_to(next(each for each in path.parents if each.name == "src")).with_suffix("").parts
        inside = {".".join(parts[:length]) for length in range(1, len(parts))} & folders
        assert inside or (".".join(parts[:-1]), ":flat:") in asked, f"{'.'.join(parts)} is on no page"


def test_formulas_need_no_other_server() -> None:
    configuration = (DOCS / "conf.py").read_text(encoding="utf-8")
    assert 'html_math_renderer = "mathml"' in configuration and '"offline_math"' in configuration


def test_every_cell_about_another_library_says_where_it_was_read() -> None:
    page = (DOCS / "others.md").read_text(encoding="utf-8")
    rows = [line.strip("| \n").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    sources = set(re.findall(r"(?m)^(\d+)\. ", page))
    assert len(rows) > 10 and len(sources) == 8
    for name, _, *others in rows:
        assert len(others) == 6, name
        for cell in others:
            cited = set(re.findall(r"\[(\d+)\](?!\()", cell))
            assert cell == "not looked up" or (cited and cited <= sources) or "(how-fast.md)" in cell, (name, cell)


def test_drawing_needs_no_torch() -> None:
    # Whoever writes a page may have no torch at hand.
    program = "import sys, runpy; runpy.run_path(sys.argv[1]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", program, str(DOCS / "draw_pictures.py")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
