"""Makes a notebook of a tutorial that needs one process: `python docs/make_notebook.py` writes it next to the page.

The page is Markdown with `python` and `text output` fences; a fence becomes a cell, and what the page shows its output.
In a notebook ranks are threads, since nothing starts it on several processes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

TUTORIALS = Path(__file__).parent / "tutorials"
PAGES = ("sharding-a-sequence",)
INSTALL = "Install ringattn and open this file in Jupyter. It was made from `docs/tutorials/{}.md`."
PART = re.compile(r"(?ms)^```(python|text output)\n(.*?)^```\n")


def cells(page: str, name: str) -> Iterator[dict[str, object]]:
    """The cells of a page, outputs with the code before them."""
    text, waiting, number = re.sub(r"(?s)\A---\n.*?\n---\n", "", page), None, 0
    yield _cell("markdown", INSTALL.format(name), 0)
    parts = PART.split(text)
    for prose, kind, body in zip(parts[::3], [*parts[1::3], ""], [*parts[2::3], ""], strict=True):
        if prose.strip():
            if waiting:
                yield waiting
                waiting = None
            number += 1
            yield _cell("markdown", _links(prose.strip()), number)
        if kind == "python":
            if waiting:
                yield waiting
            number += 1
            waiting = _cell("code", body.strip("\n"), number)
        elif kind and waiting:
            waiting["outputs"] = [{"name": "stdout", "output_type": "stream", "text": body.splitlines(keepends=True)}]
    if waiting:
        yield waiting


def _cell(kind: str, source: str, number: int) -> dict[str, object]:
    cell: dict[str, object] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell | {"source": source.splitlines(keepends=True)}


def _links(prose: str) -> str:
    """Without what only Sphinx knows."""
    return re.sub(r"\{download\}`(.*?) <.*?>`", r"\1", prose)


def notebook(name: str) -> str:
    """The text of the notebook of a page."""
    page = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": [*cells(page, name)], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in PAGES:
        (TUTORIALS / f"{name}.ipynb").write_text(notebook(name), encoding="utf-8")
