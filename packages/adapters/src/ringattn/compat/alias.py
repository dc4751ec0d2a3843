"""`install`: programs that import `ring_flash_attn` get ringattn's modules, where the original is not installed."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys

_NAME, _OURS = "ring_flash_attn", "ringattn.compat.ring_flash_attn"


def install(*, force: bool = False) -> bool:
    """Let `import ring_flash_attn`, and its submodules, mean `ringattn.compat.ring_flash_attn` in this process.

    Call it before anything imports the name. If the original is installed, nothing happens without `force`; version
    0.1.8 cannot be imported with a recent transformers. Returns whether the name means ringattn's modules now.
    """
    present = sys.modules.get(_NAME)
    if present is not None and present.__name__ == _OURS:
        return True
    if not force and (present is not None or importlib.util.find_spec(_NAME) is not None):
        return False
    ours = importlib.import_module(_OURS)
    # All modules, because with an alias of the package alone an import would load a second copy of a module.
    for module in pkgutil.walk_packages(ours.__path__, f"{_OURS}."):
        importlib.import_module(module.name)
    for name in [name for name in sys.modules if name == _OURS or name.startswith(f"{_OURS}.")]:
        sys.modules[_NAME + name.removeprefix(_OURS)] = sys.modules[name]
    return True
