"""`untraced`: where a compiler's graph breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """Keep torch.compile out of a function: to trace the planner, again for every length, would gain nothing."""
    return torch.compiler.disable(function)  # type: ignore[no-any-return, no-untyped-call]
