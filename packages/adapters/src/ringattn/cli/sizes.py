"""Numbers as people write and read them: `64k` and `1M` tokens, bytes, seconds."""

from __future__ import annotations

import re
from collections.abc import Callable

import typer

_UNITS = {"": 1, "k": 1024, "m": 1024**2}


def tokens(text: str | int) -> int:
    """`8192`, `8_192`, `64k` (65,536) or `1M` (1,048,576). Raises BadParameter with these examples."""
    number = _tokens(str(text))
    if not number:
        raise typer.BadParameter(f"{text!r} is no number of tokens: write 8192, 64k or 1M.")
    return number


def lengths(text: str) -> list[int]:
    """`64k`, or `4096,8k,1000`: the lengths of packed documents. Raises BadParameter for anything else."""
    parts = text.split(",")
    found = [_tokens(part) for part in parts]
    if not all(found):
        wrong = f"{parts[found.index(0)]!r} in {text!r}" if len(parts) > 1 else repr(text)
        raise typer.BadParameter(
            f"{wrong} is no number of tokens: write 8192, 64k or 1M, or a list of documents' lengths such as 7,5,12."
        )
    return found


def _tokens(text: str) -> int:
    """A whole number of tokens, or 0."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([km]?)", text.strip().lower().replace("_", ""))
    number = float(found[1]) * _UNITS[found[2]] if found else 0.0
    return int(number) if number == int(number) else 0


def whole(least: int, most: int | None = None) -> Callable[[str | int], int]:
    """What reads a whole number in these bounds. It raises BadParameter with them."""
    bounds = f"{least} or more" if most is None else f"from {least} to {most:,}"

    def number(text: str | int) -> int:
        plain = str(text).strip().replace("_", "")
        found = int(plain) if re.fullmatch(r"-?\d+", plain) else None
        if found is None or found < least or (most is not None and found > most):
            raise typer.BadParameter(f"it must be a whole number, {bounds}, got {text}.")
        return found

    return number


def count(number: int, thing: str) -> str:
    """`1 rank`, `8,192 tokens`."""
    return f"{number:,} {thing}{'s' if number != 1 else ''}"


def data(size: float) -> str:
    """`1.5 GiB`: three digits, so what would round to 1,000 of a unit is given in the next one."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 999.5:
            return f"{digits(size)} {unit}"
        size /= 1024
    return f"{digits(size)} TiB"


def duration(seconds: float) -> str:
    """`12.3 ms`."""
    return f"{digits(seconds)} s" if seconds >= 1 else f"{digits(seconds * 1e3)} ms"


def digits(number: float) -> str:
    """The first three digits, written out: `3,940`, where a format of three digits would give 3.94e+03."""
    return f"{float(f'{number:.3g}'):,.9g}"
