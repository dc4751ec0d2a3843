"""The rules of the house: who may import whom, what stays light to import, and one version for all."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import ringattn

ROOT = Path(__file__).parents[1]
# From the lowest package to the highest. A package may import those before it, and itself.
PACKAGES = {"ringattn_core": "core", "ringattn_comms": "comms", "ringattn": "adapters"}
# Of core: which of the other folders each may import. `errors` and `optional` are for all of them.
FOLDERS = {"plan": set(), "look": {"plan"}, "run": {"plan"}, "kernels": {"plan", "run"}}
TORCHLESS = ["plan", "look"]
# The proof compares numbers by the million, and imports these modules when it is asked for.
WITH_TORCH = {f"ringattn_core.look.{name}" for name in ("bands", "coverage", "sound", "table")}
OPTIONAL = ["cupy", "flash_attn", "transformers"]
# They take as long to import as PyTorch itself.
COMPILERS = ["torch._dynamo", "triton"]


def sources(package: str) -> dict[str, Path]:
    """The modules of a package by the names under which they are imported."""
    folder = ROOT / "packages" / PACKAGES[package] / "src"
    modules = {}
    for path in sorted((folder / package).rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports(module: str, path: Path, *, deferred: bool) -> set[str]:
    """Every name that the module imports, from a module or as a module; on request also those inside functions."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        match pending.pop():
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not deferred:
                pass
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")) if not deferred:
                pass
            case ast.Import(names=names):
                found.update(alias.name for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = package[: len(package) - level + 1] if level else []
                origin = ".".join([*base, source] if source else base)
                found.add(origin)
                found.update(f"{origin}.{alias.name}" for alias in names)
            case node:
                pending.extend(ast.iter_child_nodes(node))
    return found


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_between_packages_only_go_down(package: str) -> None:
    order = list(PACKAGES)
    higher = set(order[order.index(package) + 1 :])
    for module, path in sources(package).items():
        upward = roots(imports(module, path, deferred=True)) & higher
        assert not upward, f"{module} imports {upward}, which is above {package}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_cycle_within_a_package(package: str) -> None:
    modules = sources(package)
    graph = {name: imports(name, path, deferred=False) & modules.keys() - {name} for name, path in modules.items()}
    # `from package import module` names the package too. What a package's own `__init__` offers may come from its
    # modules, so a module that only wants a sibling does not depend on it.
    for module, needed in graph.items():
        ancestors = {other for other in needed if module.startswith(f"{other}.")}
        if any(other.startswith(f"{ancestor}.") for ancestor in ancestors for other in needed):
            needed.difference_update(ancestors)
    TopologicalSorter(graph).prepare()


def folder(module: str) -> str:
    """The folder of core that a module is in; empty for what lies above them."""
    return [*module.split("."), ""][1] if module.startswith("ringattn_core.") else ""


def needed(module: str, modules: dict[str, Path], *, deferred: bool) -> set[str]:
    """All that a module imports, and what that imports in turn; of modules outside of core their names alone."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        if (name := pending.pop()) not in seen:
            seen.add(name)
            # What core's own `__init__` offers is there for users.
            if name in modules and name != "ringattn_core":
                pending.extend(imports(name, modules[name], deferred=deferred))
    return seen


def test_every_module_of_core_is_in_a_folder() -> None:
    modules = {name for name in sources("ringattn_core") if name != "ringattn_core"}
    above = {name for name in modules if folder(name) not in FOLDERS}
    assert above == {"ringattn_core.errors", "ringattn_core.optional"}
    for name in above:
        assert not imports(name, sources("ringattn_core")[name], deferred=True) & modules


@pytest.mark.parametrize("name", FOLDERS)
def test_imports_between_the_folders_of_core_only_go_down(name: str) -> None:
    modules = sources("ringattn_core")
    mine = [module for module in modules if folder(module) == name]
    assert mine
    for module in mine:
        found = imports(module, modules[module], deferred=True)
        assert "ringattn_core" not in found, f"{module} imports from the package itself: name the module"
        wrong = {folder(other) for other in found} & FOLDERS.keys() - {name, *FOLDERS[name]}
        assert not wrong, f"{module} imports from {wrong}, and {name} may import {FOLDERS[name] or 'no other'} alone"


@pytest.mark.parametrize("name", TORCHLESS)
def test_planning_and_looking_import_no_torch(name: str) -> None:
    modules = sources("ringattn_core")
    for module in (module for module in modules if folder(module) == name and module not in WITH_TORCH):
        assert "torch" not in roots(needed(module, modules, deferred=False)), f"{module} imports torch"
        # Inside functions too, but for those modules.
        assert "torch" not in roots(imports(module, modules[module], deferred=True)), f"{module} imports torch"


def test_a_name_of_core_is_no_folder_of_it() -> None:
    """`plan` is both: whatever has been imported, `ringattn_core.plan` is the function that users call."""
    for module in sources("ringattn_core"):
        if folder(module) in TORCHLESS and module not in WITH_TORCH:
            import_module(module)
    assert import_module("ringattn_core").plan is import_module("ringattn_core.plan.planner").plan


def test_core_never_imports_torch_distributed() -> None:
    for module, path in sources("ringattn_core").items():
        found = {name for name in imports(module, path, deferred=True) if name.startswith("torch.distributed")}
        assert not found, f"{module} imports {found}; transports live above core"


def test_importing_ringattn_imports_no_optional_library() -> None:
    use = "for name in ringattn.__all__: getattr(ringattn, name)"
    program = f"import sys, ringattn\n{use}\nprint([name for name in {OPTIONAL + COMPILERS} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


ATTENTION = """
import sys, torch, torch.distributed as dist, ringattn
from ringattn_comms.backends.threads import run
x = torch.ones(1, 8, 2, 4, requires_grad=True)
run(2, lambda comm: ringattn.attention(x, x, x, cp=ringattn.ContextParallel(comm), causal=True).sum().backward())
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
ringattn.attention(x, x, x, causal=True).sum().backward()
"""


def test_attention_on_cpus_imports_no_optional_library() -> None:
    program = f"{ATTENTION}\nprint([name for name in {OPTIONAL} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_public_names_are_what_type_checkers_see() -> None:
    """`ringattn` imports its names when they are used; its stub states them."""
    tree = ast.parse(sources("ringattn")["ringattn"].with_suffix(".pyi").read_text(encoding="utf-8"))
    imported = {name.name: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {*ringattn.__all__} <= imported.keys() | defined and {*ringattn.__all__, "__version__"} <= {*dir(ringattn)}
    for name in imported.keys() & {*ringattn.__all__}:
        assert getattr(ringattn, name) is getattr(import_module(str(imported[name])), name)
    # A submodule of the same name would take its place as soon as anything imports it.
    assert not {*ringattn.__all__} & {module.partition(".")[2] for module in sources("ringattn")}
    with pytest.raises(AttributeError, match="module 'ringattn' has no attribute 'atention'"):
        getattr(ringattn, "atention")  # noqa: B009 - type checkers see through any other way


def test_one_version_for_all_packages() -> None:
    projects = [
        tomllib.loads((ROOT / "packages" / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for folder in PACKAGES.values()
    ]
    (version,) = {project["version"] for project in projects}
    siblings = {
        re.sub(r"\[.*\]", "", requirement)
        for project in projects
        for group in [project["dependencies"], *project.get("optional-dependencies", {}).values()]
        for requirement in group
        if requirement.startswith("ringattn")
    }
    minor = version.rpartition(".")[0]
    assert siblings == {f"ringattn-core~={minor}.0", f"ringattn-comms~={minor}.0"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(package: str) -> None:
    assert (ROOT / "packages" / PACKAGES[package] / "src" / package / "py.typed").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_carries_the_license(package: str) -> None:
    # Copies, because a source distribution would carry a link as a link to nowhere.
    assert (ROOT / "packages" / PACKAGES[package] / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


# A layer of transformers' caches has `keys` and `values`, which every subclass fills.
INHERITED = {"ShardedLayer": {"keys", "values"}}


def assigned(node: ast.AST) -> set[str]:
    """The attributes of self that are assigned somewhere in a node."""
    return {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
        if isinstance(each.value, ast.Name) and each.value.id == "self"
    }


def born_late(kind: ast.ClassDef) -> set[str]:
    """Attributes that some method gives to an object of a class, and neither `__init__` nor the class itself."""
    methods = {each.name: assigned(each) for each in kind.body if isinstance(each, ast.FunctionDef)}
    fields = {
        each.target.id for each in kind.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    known = methods.get("__init__", set()) | fields | INHERITED.get(kind.name, set())
    return set().union(*methods.values()) - known


@pytest.mark.parametrize("package", PACKAGES)
def test_no_attribute_is_born_outside_init(package: str) -> None:
    late = {
        f"{module}.{kind.name}": names
        for module, path in sources(package).items()
        for kind in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(kind, ast.ClassDef) and (names := born_late(kind))
    }
    assert not late


def test_an_attribute_that_is_born_late_is_noticed() -> None:
    (kind,) = ast.parse("class A:\n def __init__(self): self.a = 1\n def f(self): self.a = 2; self.b = 3").body
    assert isinstance(kind, ast.ClassDef) and born_late(kind) == {"b"}
