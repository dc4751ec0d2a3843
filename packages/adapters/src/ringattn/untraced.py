"""`untraced`: where a compiler's graph breaks."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """Keep torch.compile out of a function: to trace the planner, again for every length, would gain nothing.

    Borders of sequences are read in such functions too: a tuple of them that is made in traced code comes out empty
    where the graph breaks behind it.
    """
    disabled = torch.compiler.disable(function)  # type: ignore[no-untyped-call]

    # torch.compile of a disabled function enables it again, so that what it gets is a function around one.
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return disabled(*args, **kwargs)

    return cast(Function, call)
