"""`no_compile`: where a compiler's graph breaks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

# `torch.compiler.disable` imports the compiler at once, for as long again as PyTorch itself; this does in a call.
from torch._compile import _disable_dynamo

Function = TypeVar("Function", bound=Callable[..., Any])


def no_compile(function: Function) -> Function:
    """Keep torch.compile out of a function: to trace the planner, again for every length, would gain nothing.

    Borders of sequences are read in such functions too: a tuple of them that is made in traced code comes out empty
    where the graph breaks behind it.
    """
    disabled = _disable_dynamo(function)

    # torch.compile of a disabled function enables it again, so that what it gets is a function around one.
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Nothing is traced before the compiler is imported.
        return (disabled if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

    # What `disable` sets too, for the message that says why a graph breaks.
    for kept_out in (disabled, call):
        vars(kept_out).update(_torchdynamo_disable=True, _torchdynamo_disable_msg="ringattn plans outside of graphs")
    return cast(Function, call)
