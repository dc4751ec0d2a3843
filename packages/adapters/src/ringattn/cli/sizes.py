"""Numbers as people write and read them: `64k`, `1M` and `1e6` tokens, bytes, seconds, hours."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

import typer

_UNITS = {"": 1, "k": 1024, "m": 1024**2, "b": 1024**3, "g": 1024**3}
_MOST = 2**53  # larger than any count of tokens that makes sense


def tokens(text: str | int) -> int:
    """`8192`, `8_192`, `1e6`, `64k` (65,536), `1M` (1,048,576) or `1B` (2**30). Raises BadParameter with examples."""
    number = _tokens(str(text))
    if not number:
        raise typer.BadParameter(f"{text!r} is no number of tokens: write 8192, 64k, 1M or 1e6.")
    return number


def lengths(text: str) -> list[int]:
    """`64k`, or `4096,8k,1000`: the lengths of packed documents. Raises BadParameter for anything else."""
    parts = text.split(",")
    found = [_tokens(part) for part in parts]
    if not all(found):
        wrong = f"{parts[found.index(0)]!r} in {text!r}" if len(parts) > 1 else repr(text)
        raise typer.BadParameter(
            f"{wrong} is no number of tokens: write 8192, 64k, 1M or 1e6, or lengths of documents such as 7,5,12."
        )
    return found


def _tokens(text: str) -> int:
    """A whole number of tokens, or 0."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\+?\d{1,2})?)([kmbg]?)", text.strip().lower().replace("_", ""))
    number = Fraction(found[1]) * _UNITS[found[2]] if found else Fraction(0)
    return int(number) if number.denominator == 1 and number <= _MOST else 0


def whole(least: int, most: int | None = None) -> Callable[[str | int], int]:
    """A parser of whole numbers in these bounds. It raises BadParameter with the bounds."""
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
    """`12.3 ms`, `59.9 s`, `2 min 5 s`, `3 h 20 min` or `2 days 4 h`."""
    if seconds < 0.9995:
        return f"{digits(seconds * 1e3)} ms"
    if seconds < 59.95:
        return f"{digits(seconds)} s"
    if round(seconds) < 3600:
        return _mixed(round(seconds), 60, "min", "s")
    if round(seconds / 60) < 48 * 60:
        return _mixed(round(seconds / 60), 60, "h", "min")
    return _mixed(round(seconds / 3600), 24, "days", "h")


def _mixed(number: int, base: int, large: str, small: str) -> str:
    """A number of small units, in large units of `base` small ones and the rest."""
    whole, rest = divmod(number, base)
    return f"{whole:,} {large}" + (f" {rest} {small}" if rest else "")


def digits(number: float) -> str:
    """The first three digits, written out: `3,940`, where a format of three digits would give 3.94e+03."""
    return f"{float(f'{number:.3g}'):,.9g}"
