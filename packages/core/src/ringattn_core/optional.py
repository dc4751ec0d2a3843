"""Which optional libraries are here, without importing them."""

from __future__ import annotations

from importlib.util import find_spec


def is_installed(module: str) -> bool:
    """Is there a module of that name? Its parents are imported, and what a broken one raises comes through.

    A module that was put into `sys.modules` without a `__spec__`, as test suites do in place of a library that is
    missing, is no library to compute with.
    """
    try:
        return find_spec(module) is not None
    except ValueError:
        return False
