"""Options that help texts and commands in pages and sources name: each of them exists."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from ringattn.cli.main import app

ROOT = Path(__file__).parents[1]
LEFT_OUT = {"dev/LOG.md", "CHANGELOG.md", "tests/test_options.py"}  # commands as they were
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OF_PIP = {"--no-deps"}
# A command in a text: `ringattn`, by any of its names, or a script of the repository.
COMMAND = re.compile(
    r"(?:-m ringattn(?:\.cli)?|(?<![\w./-])ringattn|hatch run) (\w+)|((?:benchmarks|dev|docs)/\w+\.py)"
)
GROUP: Any = typer.main.get_command(app)  # of click, or of the copy of it that newer versions of typer have
COMMANDS: dict[str, Any] = GROUP.commands


def options(command: Any) -> set[str]:
    """The options that a command of `ringattn` takes, in every spelling."""
    parameters = command.params
    return {"--help", *(name for each in parameters for name in (*each.opts, *each.secondary_opts))}


@cache
def accepted(command: str) -> set[str]:
    """The options of a command of `ringattn` by its name, or of a script by its path: those among its strings."""
    if command in COMMANDS:
        return options(COMMANDS[command])
    return {text for text in strings(ROOT / command) if OPTION.fullmatch(text)} | {"--help"}


def strings(module: Path) -> Iterator[str]:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def unknown(text: str) -> list[str]:
    """The options of a text's commands that do not exist."""
    found = []
    for line in text.splitlines():
        named = [match for match in COMMAND.finditer(line) if (match[1] or match[2]) in known()]
        ends = [*(match.start() for match in named), len(line)][1:]
        for match, end in zip(named, ends, strict=True):
            part = re.split(r"`|&&", line[match.end() : end])[0]
            found += [
                f"{match[0]} {name}" for name in OPTION.findall(part) if name not in accepted(match[1] or match[2])
            ]
    return found


@cache
def known() -> set[str]:
    scripts = (path for folder in ("benchmarks", "dev", "docs") for path in (ROOT / folder).glob("*.py"))
    return {*COMMANDS, *(str(path.relative_to(ROOT)) for path in scripts)}


def sources() -> dict[str, str]:
    kinds = "*.md", "*.py", "*.toml", "*.yml", "*.ipynb"
    listed = subprocess.run(["git", "ls-files", *kinds], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("the files of the project are those that git knows, and this is no repository")
    names = sorted(name for name in {*listed.stdout.splitlines()} - LEFT_OUT if (ROOT / name).exists())
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_names_options_that_the_command_has(name: str) -> None:
    command = COMMANDS[name]
    texts = [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]
    named = set(OPTION.findall("\n".join(texts))) - OF_PIP
    assert named <= options(command), f"ringattn {name} --help names what it does not take"


def test_messages_of_the_command_line_name_options_that_exist() -> None:
    every = set.union(*map(options, [GROUP, *COMMANDS.values()]))
    for module in (ROOT / "packages/adapters/src/ringattn/cli").glob("*.py"):
        named = set(OPTION.findall("\n".join(strings(module)))) - OF_PIP
        assert named <= every, f"{module.name} names what no command takes"


def test_commands_in_pages_and_sources_have_options_that_exist() -> None:
    found = {name: wrong for name, text in sources().items() if (wrong := unknown(text))}
    assert not found, found


def test_an_option_that_does_not_exist_is_noticed() -> None:
    assert unknown("`ringattn plan --seqlen 1M --causally` or `ringattn draw --one-sided --svg a.svg`") == [
        "ringattn plan --causally",
        "ringattn draw --one-sided",
    ]
    assert unknown("    python benchmarks/census.py --only llama --rewrite PAGE") == ["benchmarks/census.py --rewrite"]
    assert unknown("    hatch run demo --text 4096 && hatch test --timeout 3") == ["hatch run demo --text"]
