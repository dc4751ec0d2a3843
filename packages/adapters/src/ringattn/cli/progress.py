"""A bar for what takes long: on the terminal's error stream while it runs, and nothing where nobody watches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def busy(description: str) -> AbstractContextManager[object]:
    """What shows on a terminal that something is under way which cannot say how far it is."""
    console = Console(stderr=True)
    return console.status(description) if console.is_terminal else nullcontext()


def followed(items: Sequence[T], description: str) -> Iterable[T]:
    """The items, and a bar that moves on with each of them."""
    console = Console(stderr=True)
    return track(items, description, console=console, transient=True, disable=not console.is_terminal)
