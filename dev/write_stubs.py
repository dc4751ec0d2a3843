"""Writes the stubs (`.pyi`) of modules whose names are made at import: what type checkers and editors read of them.

    hatch run python dev/write_stubs.py

Signatures and docstrings are those of the functions themselves. What most of them return depends on an option, so each
has three overloads: without the option, with it, and with a bool that is known when the program runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from textwrap import fill, indent
from typing import Any

import ringattn
from ringattn.conventions import CONVENTIONS, names

SOURCES = Path(__file__).parents[1] / "packages/adapters/src"
COMPAT = "ringattn.compat.ring_flash_attn"
HEAD = """# Written by dev/write_stubs.py from the functions themselves: change those, and run it again.
# fmt: off
"""
IMPORTS = """from typing import Literal, overload

from torch import Tensor

from ringattn.context_parallel import ContextParallel
from ringattn.lengths import Lengths
from ringattn.llama3 import llama3_flash_attn_prepare_cu_seqlens
from ringattn.mask_rows import Masks
from ringattn_comms.backends.threads import run
from ringattn_comms.connect import Group
from ringattn_core.errors import UnsupportedError

__version__: str
"""


def stubs() -> dict[Path, str]:
    """The text of every stub by its path."""
    modules = {"ringattn/__init__.pyi": public(), "ringattn/compat/ring_flash_attn/__init__.pyi": package()}
    for prefix, convention in CONVENTIONS.items():
        if convention.raw_only is not None:
            modules[f"ringattn/compat/ring_flash_attn/{prefix}.pyi"] = family(prefix)
    return {SOURCES / path: HEAD + text for path, text in modules.items()}


def public() -> str:
    """The stub of `ringattn`: all that users import from it."""
    functions = ["attention", *(name for convention in CONVENTIONS.values() for name in names(convention))]
    parts = [IMPORTS, exported(ringattn.__all__)]
    for name in functions:
        option, returned = "return_attn_probs", "tuple[Tensor, Tensor, None]"
        if name == "attention":
            option, returned = "return_lse", "tuple[Tensor, Tensor]"
        parts.extend(overloads(getattr(ringattn, name), option, returned))
    return "\n".join(parts)


def package() -> str:
    """The stub of the package `ring_flash_attn`."""
    exports = import_module(COMPAT).__all__
    adapters = ["substitute_hf_flash_attn", "update_ring_flash_attn_params"]
    ours = [name for name in exports if name not in adapters]
    return "\n".join(
        (imported("ringattn", ours), imported(f"{COMPAT}.adapters.hf_adapter", adapters), "", exported(exports))
    )


def family(prefix: str) -> str:
    """The stub of a module of `ring_flash_attn`: functions of `ringattn`, and two passes below autograd."""
    module = import_module(f"{COMPAT}.{prefix}")
    passes = {f"{prefix}_forward": "tuple[Tensor, Tensor]", f"{prefix}_backward": "tuple[Tensor, Tensor, Tensor]"}
    others = [name for name in module.__all__ if name not in passes]
    helpers = [name for name in others if not hasattr(ringattn, name)]
    parts = ["from torch import Tensor\n", imported("ringattn", [name for name in others if name not in helpers])]
    parts += [imported(f"{COMPAT}.utils", helpers)] if helpers else []
    parts += ["from ringattn_comms.connect import Group\n", exported(module.__all__)]
    for name, returned in passes.items():
        function = getattr(module, name)
        parts.append(definition(function, inspect.signature(function).parameters.values(), returned, documented=True))
    return "\n".join(parts)


def imported(module: str, wanted: list[str]) -> str:
    """An import of these names."""
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in sorted(wanted)) + ")"


def exported(wanted: list[str]) -> str:
    """`__all__`, which states what is public."""
    return "__all__ = [\n" + "".join(f'    "{name}",\n' for name in wanted) + "]\n"


def overloads(function: Callable[..., Any], option: str, returned: str) -> Iterator[str]:
    """A function without its option, with it, and with one that is not known. The last of them has the docstring."""
    given = inspect.signature(function).parameters
    without = [each.replace(annotation="Literal[False]") if name == option else each for name, each in given.items()]
    known = [
        each.replace(annotation="Literal[True]", default=inspect.Parameter.empty) if name == option else each
        for name, each in given.items()
    ]
    yield "@overload\n" + definition(function, without, "Tensor")
    yield "@overload\n" + definition(function, known, returned)
    yield "@overload\n" + definition(function, given.values(), f"Tensor | {returned}", documented=True)


def definition(function: Callable[..., Any], parameters: Any, returned: str, *, documented: bool = False) -> str:
    """One signature, in lines of 120 columns. After a default, a parameter without one has to be named."""
    written, optional, named = list[str](), False, False
    for each in parameters:
        required = each.default is inspect.Parameter.empty
        if not named and (each.kind is inspect.Parameter.KEYWORD_ONLY or (required and optional)):
            written.append("*")
            named = True
        optional = optional or not required
        written.append(f"{each.name}: {each.annotation}" + ("" if required else f" = {each.default!r}"))
    # A space that `fill` does not know keeps a parameter in one line.
    unbroken = " ".join(f"{each},".replace(" ", "\0") for each in written)
    lines = fill(unbroken, 120, initial_indent="    ", subsequent_indent="    ", break_long_words=False)
    end = "\n" + indent(docstring(function), "    ") if documented else " ..."
    return f"def {function.__name__}(\n{lines}\n) -> {returned}:{end}\n".replace("\0", " ")


def docstring(function: Callable[..., Any]) -> str:
    """The docstring as it is written in a source file, without its indentation."""
    text = inspect.getdoc(function) or ""
    return f'"""{text}\n"""' if "\n" in text else f'"""{text}"""'


if __name__ == "__main__":
    for path, text in stubs().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(SOURCES)}, {text.count(chr(10)):,} lines")
