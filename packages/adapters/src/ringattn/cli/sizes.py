"""Numbers as people write and read them: `64k` and `1M` tokens, bytes, seconds."""

from __future__ import annotations

import re

import typer

_UNITS = {"": 1, "k": 1024, "m": 1024**2}


def tokens(text: str | int) -> int:
    """`8192`, `8_192`, `64k` (65,536) or `1M` (1,048,576). Raises BadParameter with these examples."""
    plain = str(text).strip().lower().replace("_", "")
    if re.fullmatch(r"\d{1,3}(,\d{3})+", plain):
        plain = plain.replace(",", "")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([km]?)", plain)
    number = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not found or number < 1 or number != int(number):
        raise typer.BadParameter(f"{text!r} is no number of tokens: write 8192, 64k or 1M.")
    return int(number)


def lengths(text: str) -> list[int]:
    """`4096,8k,1000`: the lengths of packed documents. Raises BadParameter for anything else."""
    return [tokens(part) for part in text.split(",")]


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
