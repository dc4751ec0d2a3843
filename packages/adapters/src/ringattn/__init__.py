"""Exact attention over sequences that are sharded across devices: the functions that users call.

The native API is `ContextParallel` and `attention`; the functions of ring-flash-attention have their own names here.
Each name is imported when it is first used, so that planning and drawing in a terminal start without PyTorch. What type
checkers and editors know of them is in `__init__.pyi`, which `dev/write_stubs.py` writes.
"""

from importlib import import_module

from ringattn.conventions import CONVENTIONS, names

_MODULES = {
    "ContextParallel": "ringattn.context_parallel",
    "UnsupportedError": "ringattn_core.errors",
    "attention": "ringattn.native",
    "llama3_flash_attn_prepare_cu_seqlens": "ringattn.llama3",
    "run": "ringattn_comms.backends.threads",
    "__version__": "ringattn.version",
}
_FUNCTIONS = [name for convention in CONVENTIONS.values() for name in names(convention)]

__all__ = sorted([*_FUNCTIONS, *_MODULES.keys() - {"__version__"}])  # noqa: PLE0605 - made from the tables


def __getattr__(name: str) -> object:
    """Import a name when it is first used, as PEP 562 has it."""
    if name in _FUNCTIONS:
        value = import_module("ringattn.functions").FUNCTIONS[name]
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_FUNCTIONS})
