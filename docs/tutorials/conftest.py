"""Makes a test of every tutorial: a page is one program, and what it prints is what the page shows.

The ```` ```python ```` fences of a page, in order, are the program. It runs on the CPU, on as many processes as `nproc`
in the front matter says, 4 by default, and is skipped where a module is missing that `needs` names there. The processes
have the environment that `torchrun` gives them, but are forked from a server that has imported once what the pages
import. Each ```` ```text output ```` fence is what rank 0 has printed since the one before; a page shows all that its
program prints. `python docs/tutorials/conftest.py PAGE` runs one page for a reader, under `torchrun` and without the
comparison.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from importlib.util import find_spec
from itertools import zip_longest
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import pytest

HERE = Path(__file__).parent
TIME_LIMIT = 240  # seconds, less than the limit of a test, so that it is this file that says which page hung
OUTPUT_ENDS = "@@ the output of a page ends here @@"
# What comes after the last line of a page is not the page's: gloo now and then aborts a process that ends in order
# while something, such as a mesh, still holds one of its groups.
END = "import os, sys; sys.stdout.flush(); sys.stderr.flush(); os._exit(0)\n"

CONTEXT = multiprocessing.get_context("forkserver")
IMPORTED: set[str] = set()  # by any page


class PageError(Exception):
    """The program of a page failed, or printed something else than the page shows."""


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return Page.from_parent(parent, path=file_path) if file_path.suffix == ".md" else None


class Page(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        program, _ = read(self.path.read_text(encoding="utf-8"))
        IMPORTED.update(re.findall(r"(?m)^(?:import|from) ([\w.]+)", program))
        CONTEXT.set_forkserver_preload(sorted(IMPORTED))
        yield Program.from_parent(self, name=self.path.stem)


class Program(pytest.Item):
    def runtest(self) -> None:
        page = self.path.read_text(encoding="utf-8")
        for module in front_matter(page, "needs").split():
            pytest.importorskip(module, reason=f"the page needs {module}, which is not installed")
        program, shown = read(page)
        script = written(program, self.config.rootpath / ".tutorials" / f"{self.path.stem}.py")
        printed = run(script, number_of_processes(page)).split(f"{OUTPUT_ENDS}\n")
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


def run(script: Path, processes: int) -> str:
    """Run the script on several processes of this machine and return what rank 0 printed."""
    from torch.distributed import TCPStore

    # Where the processes find each other, on a free port of this machine.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with TemporaryDirectory() as logs:
        # The path of this file stands for its functions, since it is no module that a process could import.
        ranks = [
            CONTEXT.Process(
                target=runpy.run_path,
                args=(__file__, {"given": (script, rank, processes, store.port, Path(logs))}, "__rank__"),
            )
            for rank in range(processes)
        ]
        try:
            for process in ranks:
                process.start()
            failed = first_to_fail(ranks)
        finally:
            for process in ranks:
                process.kill()
                process.join()
        if failed is not None:
            tracebacks = {file.read_text(encoding="utf-8") for file in Path(logs).glob("*.stderr")}
            # A process that a signal ended leaves no traceback, but then its exit code says which one it was.
            verdict = f"rank {failed} ended with exit code {ranks[failed].exitcode}"
            raise PageError("\n".join(["the program failed", *sorted(tracebacks), verdict]))
        return (Path(logs) / "0.stdout").read_text(encoding="utf-8")


def first_to_fail(ranks: Sequence[BaseProcess]) -> int | None:
    """The rank that ends first with an exit code other than 0, or None when all have ended well."""
    deadline, running = monotonic() + TIME_LIMIT, {process.sentinel: rank for rank, process in enumerate(ranks)}
    while running:
        ended = wait(list(running), timeout=max(0.0, deadline - monotonic()))
        if not ended:
            raise PageError(f"the program did not end within {TIME_LIMIT} s")
        for sentinel in ended:
            rank = running.pop(sentinel)
            ranks[rank].join()
            if ranks[rank].exitcode:
                return rank
    return None


def as_rank(script: Path, rank: int, size: int, port: int, logs: Path) -> None:
    """The life of one process: the environment is torchrun's, and what it prints goes to files of its own."""
    import torch

    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    # The store is there already: rank 0 does not have to make one.
    store = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    os.environ.update(store | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(logs / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), stream)
    runpy.run_path(str(script), run_name="__main__")


def tidy(text: str) -> str:
    """Without the spaces at the ends of lines and the blank lines around, which no reader sees."""
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()).strip("\n")


def listed(heading: str, pages: Iterable[str]) -> str:
    """Pages as they can be given to `main`, one in a line."""
    return "\n  ".join([heading, *(f"docs/tutorials/{page}.md" for page in pages)])


def main(arguments: list[str]) -> str | int:
    """Run a page, and show what its processes print as they do. Returns what is wrong, or the exit status."""
    pages = {path.stem: path for path in sorted(HERE.glob("*.md"))}
    if len(arguments) != 1:
        return listed(f"Name the one page to run, got {len(arguments)}:", pages)
    name = Path(arguments[0]).stem
    if name not in pages:
        alike = sorted(pages, key=lambda page: SequenceMatcher(None, name, page).ratio(), reverse=True)
        return listed(f"There is no tutorial {arguments[0]}; there are, the most similar name first:", alike)
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


if __name__ == "__rank__":
    as_rank(*globals()["given"])

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
