"""`no_compile`: functions that torch.compile does not look into."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

# `torch.compiler.disable` imports the compiler, which takes as long as PyTorch itself; this does so in a call.
from torch._compile import _disable_dynamo

Function = TypeVar("Function", bound=Callable[..., Any])


def no_compile(function: Function) -> Function:
    """Keep torch.compile out of a function: to trace the planner for every length again would gain nothing.

    Borders of sequences are read in such functions too: a tuple of them that is made in traced code is empty after the
    next graph break.
    """
    disabled = _disable_dynamo(function)

    # torch.compile of a disabled function enables it again, so it gets a function that calls the disabled one.
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Nothing is traced before the compiler is imported.
        return (disabled if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

    # `disable` sets these too, for the message about the graph break.
    for kept_out in (disabled, call):
        vars(kept_out).update(_torchdynamo_disable=True, _torchdynamo_disable_msg="ringattn plans outside of graphs")
    return cast(Function, call)
