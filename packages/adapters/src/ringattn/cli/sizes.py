"""Numbers as people write and read them: `64k` and `1M` tokens, bytes, seconds."""

from __future__ import annotations

import re

import typer

_UNITS = {"": 1, "k": 1024, "m": 1024**2}


def tokens(text: str | int) -> int:
    """`8192`, `8_192`, `64k` (65,536) or `1M` (1,048,576). Raises BadParameter with these examples."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([km]?)", str(text).strip().lower().replace(",", "").replace("_", ""))
    number = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not found or number < 1 or number != int(number):
        raise typer.BadParameter(f"{text!r} is no number of tokens: write 8192, 64k or 1M.")
    return int(number)


def lengths(text: str) -> list[int]:
    """`4096,8k,1000`: the lengths of packed documents. Raises BadParameter for anything else."""
    return [tokens(part) for part in text.split(",")]


def data(size: float) -> str:
    """`1.5 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"


def duration(seconds: float) -> str:
    """`12.3 ms`."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
