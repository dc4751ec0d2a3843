"""The message for libraries of an extra that are not installed."""

from importlib.util import find_spec


def missing(what: str, extra: str, *modules: str) -> str | None:
    """Which of an extra's modules are not installed, and the command that installs them; None if all are there."""
    absent = [module for module in modules if find_spec(module) is None]
    if not absent:
        return None
    return f"{what} needs {' and '.join(absent)}: python -m pip install 'ringattn[{extra}]'"
