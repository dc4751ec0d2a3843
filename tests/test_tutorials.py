"""The collector of tutorials: a page passes only if its program runs and prints what the page shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COLLECTOR = Path(__file__).parents[1] / "docs/tutorials/conftest.py"

GOOD = """---
nproc: 2
---
Every process adds its number.

```python
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank()])
dist.all_reduce(total)
if dist.get_rank() == 0:
    print("total", total.item())
```

```text output
total 1
```

```python
dist.destroy_process_group()
```
"""

WRONG_OUTPUT = """---
nproc: 1
---
```python
print("two")
```

```text output
three
```
"""

UNSHOWN_OUTPUT = """---
nproc: 1
---
```python
print("two")
```
"""

RAISES = """---
nproc: 1
---
The next line but two raises, and that is line 7.

```python
1 / 0
```
"""

NEEDS_WHAT_IS_NOT_THERE = """---
nproc: 1
needs: re no_such_module
---
```python
1 / 0
```
"""


def run(pages: dict[str, str], folder: Path) -> tuple[int, str]:
    """The exit status and the report of pytest for a folder with these pages."""
    shutil.copy(COLLECTOR, folder)
    for name, page in pages.items():
        (folder / f"{name}.md").write_text(page)
    (folder / "pytest.ini").write_text("[pytest]\n")
    # Options meant for the run that this test is part of are not meant for the run that it starts.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-rA", str(folder)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout


def test_a_page_passes_only_if_it_runs_and_prints_what_it_shows(tmp_path: Path) -> None:
    """All in one run of pytest, so that the server that processes are forked from is started once."""
    pages = {"good": GOOD, "wrong": WRONG_OUTPUT, "unshown": UNSHOWN_OUTPUT, "raises": RAISES}
    status, report = run(pages | {"needs": NEEDS_WHAT_IS_NOT_THERE}, tmp_path)
    assert status == pytest.ExitCode.TESTS_FAILED, report
    for outcome, names in {"PASSED": ["good"], "FAILED": ["wrong", "unshown", "raises"]}.items():
        assert sorted(re.findall(rf"(?m)^{outcome} (\w+)\.md", report)) == sorted(names), report
    assert "the page shows\nthree\n\nbut rank 0 printed\ntwo\n" in report
    assert "the page shows\n\nbut rank 0 printed\ntwo\n" in report
    # The line of the page, and what was wrong with it.
    assert 'raises.py", line 7, in <module>\n    1 / 0' in report and "ZeroDivisionError" in report
    assert "1 skipped" in report and "the page needs no_such_module, which is not installed" in report


def test_a_reader_runs_a_page_under_torchrun(tmp_path: Path) -> None:
    folder = tmp_path / "docs/tutorials"
    folder.mkdir(parents=True)
    shutil.copy(COLLECTOR, folder)
    (folder / "good.md").write_text(GOOD)
    command = [sys.executable, str(folder / COLLECTOR.name), "docs/tutorials/good.md"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "torchrun --nproc-per-node=2 .tutorials/good.py\ntotal 1\n"


def test_a_page_that_does_not_exist_is_answered_by_those_that_do(tmp_path: Path) -> None:
    shutil.copy(COLLECTOR, tmp_path)
    for name in ("combining", "packed-sft-with-trl", "ring-attention-in-five-lines"):
        (tmp_path / f"{name}.md").write_text(GOOD)

    def answer(*arguments: str) -> list[str]:
        command = [sys.executable, str(tmp_path / COLLECTOR.name), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 1 and not result.stdout
        return result.stderr.splitlines()

    heading, *pages = answer("docs/tutorials/ring-atention.md")
    assert heading == "There is no tutorial docs/tutorials/ring-atention.md; there are, the most similar name first:"
    assert pages[0] == "  docs/tutorials/ring-attention-in-five-lines.md" and len(pages) == 3
    assert answer("trl")[1] == "  docs/tutorials/packed-sft-with-trl.md"
    assert answer()[0] == "Name the one page to run, got 0:"
    assert answer("combining", "trl")[0] == "Name the one page to run, got 2:"
