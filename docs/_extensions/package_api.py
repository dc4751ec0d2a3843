"""Sphinx directives that document a package, or the names that users import, from source files alone.

The files are parsed, never imported: the build needs neither torch nor the optional libraries, and a page follows the
modules as they come and go. Docstrings are read as Markdown, like every other page here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

ROOT = Path(__file__).parents[2]


class PackageApi(SphinxDirective):
    """`{package-api} ringattn_core.plan` becomes a section per public module, with its public names in source order.

    With the option `flat` modules in folders of the package are left out.
    """

    required_arguments = 1
    option_spec: ClassVar = {"flat": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Write the page as Markdown and let the parser of the enclosing page read it."""
        # No list of files that the page depends on could name one that is yet to be written.
        self.env.note_reread()
        package = source(self.arguments[0])
        text = []
        for path in sorted(package.glob("*.py") if "flat" in self.options else package.rglob("*.py")):
            module = module_name(path.relative_to(source_folder(path)))
            if all(is_public(part) for part in module.split(".")):
                stub = path.with_suffix(".pyi")  # of modules whose names are made at import
                trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (path, stub) if file.exists()]
                text += module_section(module, trees[0], trees[-1])
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


class PublicNames(SphinxDirective):
    """Lines such as `ringattn.attention from ringattn.native`: each name with its signature, as it is imported."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """A section for each name, with what the module says of it where it is defined."""
        self.env.note_reread()
        text = []
        for line in self.content:
            public, _, module = line.partition(" from ")
            package, _, name = public.rpartition(".")
            path = source(module) / "__init__.py" if source(module).is_dir() else source(module).with_suffix(".py")
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found = [node for node in tree.body if getattr(node, "name", None) == name]
            if len(found) != 1:
                raise self.error(f"{module} does not define {name}")
            text += ["", f"## {public}", "", f"```{{py:currentmodule}} {package}", "```", ""]
            text += members(found, inside_class=False)
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def source(module: str) -> Path:
    """The folder or the file of a module, without its suffix."""
    first, *rest = module.split(".")
    (package,) = ROOT.glob(f"packages/*/src/{first}")
    return package.joinpath(*rest)


def source_folder(path: Path) -> Path:
    """The folder from which the module in this file is imported."""
    return next(parent for parent in path.parents if parent.name == "src")


def module_name(path: Path) -> str:
    """The name under which the file at `path`, relative to the source folder, is imported."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_section(module: str, tree: ast.Module, stub: ast.Module) -> Iterator[str]:
    """The Markdown of one module: its docstring, and what its stub says is in it."""
    yield from ("", f"## {module}", "", f"```{{py:module}} {module}", "```", "", docstring(tree), "")
    yield from members(stub.body, inside_class=False)


def members(body: list[ast.stmt], *, inside_class: bool) -> Iterator[str]:
    """The Markdown of the public functions, classes and documented variables of a module or a class."""
    for statement, following in zip(body, [*body[1:], ast.Pass()], strict=True):
        match statement:
            case ast.FunctionDef(decorator_list=[ast.Name(id="overload")]) if not ast.get_docstring(statement):
                pass  # The docstring stands with the most general signature.
            case ast.FunctionDef(decorator_list=[ast.Name(id="overload")]):
                pass  # The function itself has the docstring, in the module that defines it.
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if is_public(name):
                yield from function(statement, inside_class=inside_class)
            case ast.ClassDef(name=name) if is_public(name):
                bases = ", ".join(map(ast.unparse, statement.bases))
                content = [docstring(statement, fields(statement)), "", *members(statement.body, inside_class=True)]
                made = constructor(statement)
                if made is None:
                    yield from directive(8, "class", f"{name}({bases})" if bases else name, [], content)
                else:
                    yield from directive(
                        8, "class", f"{name}({made})", [], [*([f"A `{bases}`."] if bases else []), "", *content]
                    )
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)) if is_public(name):
                annotation = getattr(statement, "annotation", None)
                options = [f":type: {ast.unparse(annotation)}"] if annotation else []
                # By convention, a string that follows an assignment documents it. Undocumented fields of a class are
                # still part of its signature; undocumented variables of a module are its own affair.
                text = literal(following)
                if text or inside_class:
                    yield from directive(6, "attribute" if inside_class else "data", name, options, [text])
            case ast.Assign(targets=[ast.Tuple(elts=elements)], value=ast.Call() as call):
                # Several at once are what the call on the right makes, and that says what they are.
                for name in (element.id for element in elements if isinstance(element, ast.Name)):
                    yield from directive(6, "data", name, [], [f"One of `{ast.unparse(call)}`."])


def constructor(node: ast.ClassDef) -> str | None:
    """The parameters of a class: those of `__init__`, or the fields of a data class; None where neither says."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            del statement.args.args[0]
            return ast.unparse(statement.args)
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return None
    found = []
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=None):
                found.append(f"{name}: {ast.unparse(kind)}")
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=ast.Call(keywords=options)):
                given = {option.arg: ast.unparse(option.value) for option in options}
                if given.get("init") != "False":
                    found.append(f"{name}: {ast.unparse(kind)} = {given.get('default', '...')}")
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=ast.expr() as value):
                found.append(f"{name}: {ast.unparse(kind)} = {ast.unparse(value)}")
    return ", ".join(found)


def function(node: ast.FunctionDef | ast.AsyncFunctionDef, *, inside_class: bool) -> Iterator[str]:
    """The Markdown of one function, method or property."""
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    content = [docstring(node, parameters(node))]
    if inside_class and decorators & {"property", "cached_property"}:
        options = [f":type: {ast.unparse(node.returns)}"] if node.returns else []
        yield from directive(6, "property", node.name, options, content)
        return
    if inside_class and node.args.args and "staticmethod" not in decorators:
        del node.args.args[0]
    kinds = {"staticmethod", "classmethod", "abstractmethod"} & decorators if inside_class else set()
    options = [f":{kind}:" for kind in sorted(kinds)]
    if isinstance(node, ast.AsyncFunctionDef):
        options.append(":async:")
    signature = f"{node.name}({ast.unparse(node.args)}){returns}"
    yield from directive(6, "method" if inside_class else "function", signature, options, content)


def directive(fence: int, kind: str, signature: str, options: list[str], content: list[str]) -> Iterator[str]:
    """A directive of the Python domain. A fence of many ticks may hold docstrings with fences of their own."""
    ticks = "`" * fence
    yield from (f"{ticks}{{py:{kind}}} {signature}", *options, "", *content, ticks, "")


def docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, names: frozenset[str] = frozenset()
) -> str:
    """The docstring, with these names as items of a list, and with examples fenced."""
    return fence_examples(list_names(ast.get_docstring(node) or "", names))


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> frozenset[str]:
    """The names of a function's parameters."""
    return frozenset(each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))


def fields(node: ast.ClassDef) -> frozenset[str]:
    """What a class is made from: the fields of a data class, or the parameters of `__init__`."""
    names: set[str] = set()
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.FunctionDef(name="__init__"):
                names |= parameters(statement)
    return frozenset(names)


def list_names(text: str, names: frozenset[str]) -> str:
    """Put a bullet before lines such as `k, v: two tensors`: Markdown would run them together into one paragraph."""

    def item(line: re.Match[str]) -> str:
        return f"- `{line[1]}`: " if names.issuperset(line[1].split(", ")) else line[0]

    return re.sub(r"(?m)^(\w+(?:, \w+)*): ", item, text)


def literal(statement: ast.stmt) -> str:
    """The text of a statement that is nothing but a string, else nothing."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return fence_examples(text)
    return ""


def fence_examples(text: str) -> str:
    """Put every run of lines that starts with a Python prompt into a fence: Markdown would take it for a quotation."""
    return re.sub(r"(?m)^>>> .*(?:\n.+)*", r"```pycon\n\g<0>\n```", text)


def is_public(name: str) -> bool:
    """Whether the name is meant for users."""
    return not name.startswith("_")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directives."""
    app.add_directive("package-api", PackageApi)
    app.add_directive("public-names", PublicNames)
    return {"version": "1", "parallel_read_safe": True}
