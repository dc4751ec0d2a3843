"""A progress bar on the terminal's error stream, and nothing if the error stream is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def busy(description: str) -> AbstractContextManager[object]:
    """Shows on a terminal that a step of unknown length is running."""
    console = Console(stderr=True)
    return console.status(description) if console.is_terminal else nullcontext()


def followed(items: Sequence[T], description: str) -> Iterable[T]:
    """The items; a bar advances with each of them."""
    console = Console(stderr=True)
    return track(items, description, console=console, transient=True, disable=not console.is_terminal)
