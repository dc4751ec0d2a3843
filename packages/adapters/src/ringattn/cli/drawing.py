"""`ringattn draw`: who holds which tokens and who computes what, on the terminal or as an SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ringattn.cli import choices, pictures, sizes
from ringattn_core.look import svg as vector
from ringattn_core.plan.mask import Mask


def draw(
    context: typer.Context,
    seqlen: choices.SeqlenOption = "16",
    cp: choices.CpOption = 4,
    layout: choices.LayoutOption = "zigzag",
    route: choices.RouteOption = "ring",
    window: choices.WindowOption = None,
    causal: choices.CausalOption = True,
    mask: choices.MaskOption = None,
    svg: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the attention matrix to this file instead: mask.svg, or mask.png."),
    ] = None,
) -> None:
    """Draw the tokens of every rank, the attention matrix with the hop of every cell, and the work of every hop.

    A mask is drawn alone, and with who computes what where --cp, --layout or --route is given.

    Examples: ringattn draw --layout striped; ringattn draw --seqlen 7,5,12 --window 4; ringattn draw --svg mask.svg;
    ringattn draw --cp 2 --mask 'causal(12) | two_way([range(2, 5)])'
    """
    console = Console(highlight=False)
    if mask is not None:
        choices.check_mask(context)
        if not choices.given(context) & {"cp", "layout", "route"}:
            _draw_alone(mask, svg, console)
            return
    lengths, seen = choices.asked(sizes.lengths(seqlen), choices.band(window, causal), mask)
    schedules = choices.schedules(layout, route, lengths, cp, seen)
    if svg is not None:
        _write(svg, vector.mask(schedules), console)
        return
    width = console.width
    for drawing in (
        pictures.ownership(schedules[0].queries, width),
        pictures.mask(schedules, width),
        pictures.timeline(schedules, width),
    ):
        pictures.show(console, drawing)
        console.print()


def _draw_alone(mask: Mask, svg: Path | None, console: Console) -> None:
    """The cells of a mask, without ranks."""
    if svg is not None:
        _write(svg, vector.cells(mask), console)
    else:
        console.print(pictures.cells(mask, console.width), markup=False)


def _write(path: Path, picture: str, console: Console) -> None:
    """Write an SVG in the format that the file's name asks for, and say where it is. Raises BadParameter."""
    kind = path.suffix.lower()
    if kind not in ("", ".svg", ".png"):
        raise _refused(f"{path} would be {kind[1:].upper()}: name a file that ends in .svg or .png.")
    content = _png(picture, path) if kind == ".png" else picture.encode()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise _refused(f"{path} cannot be written: {error.strerror}.") from error
    console.print(f"The attention matrix is in {path}.")


def _png(picture: str, path: Path) -> bytes:
    try:
        from cairosvg import svg2png
    except (ImportError, OSError) as error:  # OSError where the library below it is missing
        raise _refused(
            f"{path} needs CairoSVG (python -m pip install cairosvg), or name it {path.with_suffix('.svg')}: {error}."
        ) from error
    png: bytes = svg2png(bytestring=picture.encode(), scale=2)
    return png


def _refused(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="'--svg'")
