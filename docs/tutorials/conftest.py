"""Makes a test of every tutorial: a page is one program, and what it prints is what the page shows.

The ```` ```python ```` fences of a page, in order, are the program. It runs under `torchrun` on the CPU, on as many
processes as `nproc` in the front matter says, 4 by default, and is skipped where a module is missing that `needs` names
there. Each ```` ```text output ```` fence is what rank 0 has printed since the one before; a page shows all that its
program prints. `python docs/tutorials/conftest.py PAGE` runs one page for a reader, without the comparison.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

HERE = Path(__file__).parent
TIME_LIMIT = 240  # seconds, less than the limit of a test, so that it is this file that says which page hung
OUTPUT_ENDS = "@@ the output of a page ends here @@"
# What comes after the last line of a page is not the page's: gloo now and then aborts a process that ends in order
# while something, such as a mesh, still holds one of its groups.
END = "import os, sys; sys.stdout.flush(); sys.stderr.flush(); os._exit(0)\n"


class PageError(Exception):
    """The program of a page failed, or printed something else than the page shows."""


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return Page.from_parent(parent, path=file_path) if file_path.suffix == ".md" else None


class Page(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        yield Program.from_parent(self, name=self.path.stem)


class Program(pytest.Item):
    def runtest(self) -> None:
        page = self.path.read_text(encoding="utf-8")
        for module in front_matter(page, "needs").split():
            pytest.importorskip(module, reason=f"the page needs {module}, which is not installed")
        program, shown = read(page)
        script = written(program, self.config.rootpath / ".tutorials" / f"{self.path.stem}.py")
        printed = torchrun(script, number_of_processes(page)).split(f"{OUTPUT_ENDS}\n")
        for number, (want, got) in enumerate(zip_longest([*shown, ""], printed, fillvalue=""), 1):
            if tidy(want) != tidy(got):
                raise PageError(f"output {number} differs; the page shows\n{want}\nbut rank 0 printed\n{got}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: str | None = None) -> object:
        # For a page that failed, the collector's own traceback would only hide what matters.
        return str(excinfo.value) if isinstance(excinfo.value, PageError) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"tutorial {self.name}"


def read(page: str) -> tuple[str, list[str]]:
    """The program of a page and the outputs that the page shows.

    The program is the page with everything blanked that is no Python, so that a line has the same number in both. On
    its first line, which is never Python, it ends if another number of processes was started.
    """
    program, shown, fence = [], [], ""
    for line in page.splitlines():
        kept = ""
        if line.startswith("```"):
            if fence == "```text output":
                kept = f"print({OUTPUT_ENDS!r}, flush=True)"
            fence = "" if fence else line.rstrip()
            if fence == "```text output":
                shown.append("")
        elif fence == "```python":
            kept = line
        elif fence == "```text output":
            shown[-1] += f"{line}\n"
        program.append(kept)
    count = number_of_processes(page)
    wrong = f'__import__("os").environ.get("WORLD_SIZE", "1") != "{count}"'
    program[0] = f'if {wrong}: raise SystemExit("Start this program with torchrun --nproc-per-node {count}")'
    return "\n".join(program), shown


def written(program: str, script: Path) -> Path:
    """The file of a program: named after its page and kept, so that a reader of a page or a traceback can open it."""
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"{program}\n{END}", encoding="utf-8")
    return script


def number_of_processes(page: str) -> int:
    """What the front matter asks for."""
    return int(front_matter(page, "nproc") or 4)


def front_matter(page: str, key: str) -> str:
    """What stands after a key between the two lines of dashes that a page begins with; nothing if it is not there."""
    found = re.match(rf"---\n(?:.*\n)*?{key}: (.*)\n(?:.*\n)*?---\n", page)
    return found[1] if found else ""


def launch(processes: int) -> list[str]:
    """What `torchrun` is, in this interpreter's environment."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def torchrun(script: Path, processes: int) -> str:
    """Run the script on several processes of this machine and return what rank 0 printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with TemporaryDirectory() as logs:
        # Every process writes to files of its own. A shared pipe would mix them with each other and with the launcher.
        command = [*launch(processes), "--redirects=3", f"--log-dir={logs}", str(script)]
        launcher = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            summary, _ = launcher.communicate(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired as error:
            raise PageError(f"the program did not end within {TIME_LIMIT} s") from error
        finally:
            # Asked to terminate, the launcher ends its processes first; killed, it would leave them behind.
            if launcher.poll() is None:
                launcher.terminate()
                launcher.wait()
        if launcher.returncode:
            tracebacks = {file.read_text(encoding="utf-8") for file in Path(logs).glob("*/attempt_0/*/stderr.log")}
            # A process that a signal ended leaves no traceback, but then the launcher says which one and how.
            verdict = "".join(summary.rpartition("Root Cause")[1:])
            raise PageError("\n".join(["the program failed", *sorted(tracebacks), verdict]))
        (printed,) = Path(logs).glob("*/attempt_0/0/stdout.log")
        return printed.read_text(encoding="utf-8")


def tidy(text: str) -> str:
    """Without the spaces at the ends of lines and the blank lines around, which no reader sees."""
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()).strip("\n")


def main(arguments: list[str]) -> str | int:
    """Run a page, and show what its processes print as they do. Returns what is wrong, or the exit status."""
    pages = {path.stem: path for path in sorted(HERE.glob("*.md"))}
    name = Path(arguments[0]).stem if len(arguments) == 1 else ""
    if name not in pages:
        return "\n  ".join(["Say which page to run:", *(f"docs/tutorials/{page}.md" for page in pages)])
    page = pages[name].read_text(encoding="utf-8")
    missing = [module for module in front_matter(page, "needs").split() if find_spec(module) is None]
    if missing:
        return f"The page needs {' and '.join(missing)}, not installed here: python -m pip install {' '.join(missing)}"
    program, _ = read(page)
    program = program.replace(f"print({OUTPUT_ENDS!r}, flush=True)", "")
    script = written(program, HERE.parents[1] / ".tutorials" / f"{name}.py")
    processes = number_of_processes(page)
    print(f"torchrun --nproc-per-node={processes} {script.relative_to(HERE.parents[1])}", flush=True)
    command = [*launch(processes), str(script)]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
