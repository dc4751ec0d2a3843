"""`untraced`: where a compiler's graph breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

# `torch.compiler.disable` imports the compiler at once, for as long again as PyTorch itself; this, in the first call.
from torch._compile import _disable_dynamo

Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """Keep torch.compile out of a function: to trace the planner, again for every length, would gain nothing.

    Borders of sequences are read in such functions too: a tuple of them that is made in traced code comes out empty
    where the graph breaks behind it. What `torch.compile` gets is a function around a disabled one, for it would enable
    that one again.
    """
    untraced = _disable_dynamo(function)
    # What `disable` sets too, for the message that says why a graph breaks.
    vars(untraced).update(_torchdynamo_disable=True, _torchdynamo_disable_msg="ringattn plans outside of graphs")
    return cast(Function, untraced)
