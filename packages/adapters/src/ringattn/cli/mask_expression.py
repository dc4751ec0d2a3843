"""Masks as they are written on a command line, such as `causal(12) | two_way([range(2, 5)])`: read, and never executed.

The text is parsed by Python's grammar, and its tree is walked here. Makers of `ringattn.masks`, numbers, lists, tuples,
ranges and texts have a meaning, and so have `|`, `&` and `-` between masks and `*` between a list and a number. The
rest is refused. Numbers may be written as in other options: 64k, 1e6.
"""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from operator import and_, or_, sub
from types import NoneType, UnionType
from typing import Any

import typer

from ringattn import masks
from ringattn.cli import sizes
from ringattn_core.errors import lookup

MAKERS: dict[str, Callable[..., masks.Mask]] = {
    name: getattr(masks, name) for name in masks.__all__ if name not in ("Mask", "of_mod")
}
_OPERATORS = {ast.BitOr: or_, ast.BitAnd: and_, ast.Sub: sub}
_SIZE = re.compile(r"\b\d+(?:\.\d+)?(?:[eE]\+?\d{1,2}[kmbgKMBG]?|[kmbgKMBG])\b")
_MOST_ENTRIES = 1 << 20  # of a list that `*` makes
_WORDS = {bool: "True or False", int: "a number", str: "a text", range: "range(start, stop)", NoneType: "None"}


def read(text: str) -> masks.Mask:
    """The mask that a text says. Raises ValueError, which names the part that is wrong and what it may be."""
    try:
        node = ast.parse(_SIZE.sub(_number, text.strip()), mode="eval").body
        mask = _value(node)
    except SyntaxError as error:
        raise ValueError(f"{_short(repr(text))} cannot be read: {error.msg}. {_EXAMPLE}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"A text of {len(text):,} characters is nested too deeply.") from error
    if not isinstance(mask, masks.Mask):
        raise ValueError(f"{_written(node)} is {_kind(mask)}, not a mask. {_EXAMPLE}")
    return mask


_EXAMPLE = f"Write 'causal(12) | two_way([range(2, 5)])', for example; makers are {', '.join(MAKERS)}."


def _number(size: re.Match[str]) -> str:
    """`64k` as 65536."""
    try:
        return str(sizes.tokens(size[0]))
    except typer.BadParameter as error:
        raise ValueError(str(error)) from error


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as number)):
            return -number
        case ast.List(elts=parts):
            return [_value(part) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(_value(part) for part in parts)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _repeated(node, _value(left), _value(right))
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _combined(node, type(operator), _value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            named = {each.arg: _value(each.value) for each in keywords if each.arg}
            if len(named) == len(keywords):
                return _made(name, [_value(each) for each in args], named)
        case ast.Name(id=name):
            maker = _maker(name)
            raise ValueError(f"{name} makes a mask when it is called: {_signature(name, maker)}.")
    raise ValueError(f"{_written(node)} has no meaning in a mask. {_EXAMPLE}")


def _repeated(node: ast.expr, left: Any, right: Any) -> list[Any]:
    if not (isinstance(left, list) and type(right) is int):
        raise ValueError(
            f"In {_written(node)}, * repeats a list, as in [1024] * 24; got {_kind(left)}, {_kind(right)}."
        )
    if len(left) * right > _MOST_ENTRIES:
        raise ValueError(f"{_written(node)} has {len(left) * right:,} entries, more than {_MOST_ENTRIES:,}.")
    return left * right


def _combined(node: ast.expr, operator: type[ast.operator], left: Any, right: Any) -> masks.Mask:
    if not (isinstance(left, masks.Mask) and isinstance(right, masks.Mask)):
        raise ValueError(f"In {_written(node)}, |, & and - are between masks; got {_kind(left)}, {_kind(right)}.")
    mask: masks.Mask = _OPERATORS[operator](left, right)
    return mask


def _made(name: str, args: Sequence[Any], named: dict[str, Any]) -> Any:
    """What a maker makes of arguments of the types that it takes."""
    if name == "range":
        if named or not 1 <= len(args) <= 2 or not all(type(each) is int for each in args):
            raise ValueError("A range is range(start, stop) of two numbers, as in range(2, 5).")
        return range(*args)
    maker = _maker(name)
    try:
        given = inspect.signature(maker).bind(*args, **named).arguments
    except TypeError as error:
        raise ValueError(f"{name}: {error}. It is {_signature(name, maker)}.") from error
    for parameter, hint in _hints(maker).items():
        if parameter in given and not _fits(given[parameter], hint):
            raise ValueError(
                f"{name}: {parameter} must be {_asked(hint)}, got {_shown(given[parameter])}. "
                f"It is {_signature(name, maker)}."
            )
    try:
        return maker(*args, **named)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _maker(name: str) -> Callable[..., masks.Mask]:
    if name == "of_mod":
        raise ValueError("of_mod takes a function, which cannot be written here: use ringattn.masks.of_mod in Python.")
    return lookup(name, MAKERS, "maker of masks")


def _hints(maker: Callable[..., masks.Mask]) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(maker).items() if name != "return"}


def _fits(value: Any, hint: Any) -> bool:
    """Is a value that was read one of a type that a maker asks for? A bool is no number, a range no list."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is UnionType:
        return any(_fits(value, part) for part in parts)
    if kind is tuple:
        return type(value) is tuple and len(value) == len(parts) and all(map(_fits, value, parts))
    if kind is not None:  # a sequence, or what can be iterated over
        return type(value) in (list, tuple) and all(_fits(each, parts[0]) for each in value)
    return type(value) is hint


def _asked(hint: Any) -> str:
    """A type in words."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    words = [_asked(part) for part in parts]
    if kind is UnionType:
        return " or ".join(words)
    if kind is tuple:
        return f"({', '.join(words)})"
    return _WORDS.get(hint, "a mask") if kind is None else f"a list [{words[0]}, ...]"


def _signature(name: str, maker: Callable[..., masks.Mask]) -> str:
    """`causal(num_queries, num_keys=None)`: how to call a maker."""
    parameters = inspect.signature(maker).parameters.values()
    return f"{name}({', '.join(str(each.replace(annotation=inspect.Parameter.empty)) for each in parameters)})"


def _written(node: ast.expr) -> str:
    return _short(ast.unparse(node))


def _shown(value: Any) -> str:
    return _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kind(value: Any) -> str:
    return "a list" if type(value) in (list, tuple) else _WORDS.get(type(value), "a mask")
