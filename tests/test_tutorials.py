"""The collector of tutorials: a page passes only if its program runs and prints what the page shows."""

from __future__ import annotations

import os
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


def run(page: str, folder: Path) -> tuple[int, str]:
    """The exit status and the report of pytest for a folder with one page."""
    shutil.copy(COLLECTOR, folder)
    (folder / "page.md").write_text(page)
    (folder / "pytest.ini").write_text("[pytest]\n")
    # Options meant for the run that this test is part of are not meant for the run that it starts.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs", str(folder)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout


def test_a_page_passes_if_it_prints_what_it_shows(tmp_path: Path) -> None:
    status, report = run(GOOD, tmp_path)
    assert status == pytest.ExitCode.OK, report


def test_a_page_with_wrong_output_fails(tmp_path: Path) -> None:
    status, report = run(WRONG_OUTPUT, tmp_path)
    assert status == pytest.ExitCode.TESTS_FAILED, report
    assert "the page shows\nthree\n\nbut rank 0 printed\ntwo\n" in report


def test_a_page_that_does_not_show_its_output_fails(tmp_path: Path) -> None:
    status, report = run(UNSHOWN_OUTPUT, tmp_path)
    assert status == pytest.ExitCode.TESTS_FAILED, report


def test_a_page_with_raising_code_fails_at_the_line_of_the_page(tmp_path: Path) -> None:
    status, report = run(RAISES, tmp_path)
    assert status == pytest.ExitCode.TESTS_FAILED, report
    assert 'page.py", line 7, in <module>\n    1 / 0' in report
    assert "ZeroDivisionError" in report


def test_a_page_is_skipped_where_what_it_needs_is_missing(tmp_path: Path) -> None:
    status, report = run(NEEDS_WHAT_IS_NOT_THERE, tmp_path)
    assert status == pytest.ExitCode.OK, report
    assert "1 skipped" in report and "the page needs no_such_module, which is not installed" in report
