"""SVG pictures stand by themselves, are sound XML, and show what the text shows."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from plans import causal
from ringattn_core.look import svg
from ringattn_core.plan import masks
from ringattn_core.plan.layout import striped, zigzag
from ringattn_core.plan.route import ring, waves

SVG = "{http://www.w3.org/2000/svg}"

PICTURES: dict[str, Callable[[], str]] = {
    "mask": lambda: svg.mask(causal(zigzag, ring, 4, 32)),
    "mask of packed sequences": lambda: svg.mask(causal(zigzag, waves(3), 4, 9, 0, 11, 24)),
    "large mask": lambda: svg.mask(causal(striped, ring, 8, 1 << 20)),
    "timeline": lambda: svg.timeline(causal(zigzag, ring, 4, 32)),
    "timeline of many ranks": lambda: svg.timeline(causal(zigzag, ring, 64, 1 << 16)),
    "ownership": lambda: svg.ownership(causal(zigzag, ring, 4, 9, 0, 11)[0].queries),
    "ownership of many tokens": lambda: svg.ownership(causal(striped, ring, 8, 1 << 20)[0].queries),
    "a mask alone": lambda: svg.cells(masks.causal(12) | masks.two_way([range(2, 5)])),
    "a long mask": lambda: svg.cells(masks.causal(1 << 20, 1 << 12)),
    "a mask of nothing": lambda: svg.cells(masks.two_way([])),
    "several masks": lambda: svg.gallery({"causal": masks.causal(1 << 12), "none": masks.two_way([])}, columns=1),
    "mask of nothing": lambda: svg.mask(causal(zigzag, ring, 2, 0)),
    "timeline of nothing": lambda: svg.timeline(causal(zigzag, ring, 2, 0)),
    "ownership of nothing": lambda: svg.ownership(causal(zigzag, ring, 2, 0)[0].queries),
}


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_sound_and_everything_lies_within(name: str) -> None:
    text = PICTURES[name]()
    picture = ElementTree.fromstring(text)
    assert picture.tag == f"{SVG}svg" and "href" not in text
    assert picture.find(f"{SVG}title") is not None
    _, _, width, height = map(float, picture.attrib["viewBox"].split())
    for shape in picture.iter(f"{SVG}rect"):
        x, y = (float(shape.attrib.get(name, 0)) for name in ("x", "y"))
        wide, high = (float(shape.attrib[name]) for name in ("width", "height"))
        assert x >= 0 and y >= 0 and wide >= 0 and high >= 0
        assert x + wide <= width + 0.01 and y + high <= height + 0.01
    assert len(text) < 1_000_000


def test_a_mask_has_the_colours_of_its_cells() -> None:
    def live(mask: masks.Mask) -> list[tuple[float, float, float, str]]:
        """Column, row, width and shade of what is live: A where all of a cell is, s where some is."""
        *_, ground = (shapes := list(ElementTree.fromstring(svg.cells(mask, size=4)).iter(f"{SVG}rect")))[:2]
        assert ground.attrib["fill"] == svg.DEAD
        side, dark = float(shapes[2].attrib["height"]), "#3b528b"
        places = [[(float(shape.attrib[name]) - 64) / side for name in ("x", "y")] for shape in shapes[2:]]
        return [
            (x, y, float(shape.attrib["width"]) / side, "A" if shape.attrib["fill"] == dark else "s")
            for (x, y), shape in zip(places, shapes[2:], strict=True)
        ]

    assert live(masks.causal(3)) == [(0, 0, 1, "A"), (0, 1, 2, "A"), (0, 2, 3, "A")]
    half = [(0, 0, 1, "s"), (0, 1, 1, "A"), (1, 1, 1, "s"), (0, 2, 2, "A"), (2, 2, 1, "s")]
    assert live(masks.causal(6)) == half
    assert "a cell of 2 x 2 tokens" in labels(svg.cells(masks.causal(6), size=4))[0]


def labels(text: str) -> list[str]:
    return [label.text or "" for label in ElementTree.fromstring(text).iter(f"{SVG}text")]


def test_the_mask_tells_ranks_and_hops() -> None:
    found = labels(svg.mask(causal(zigzag, ring, 4, 32)))
    assert found[-5:] == ["0", "1", "2", "3", "hop"]
    assert found.count("0") == 5 + 32 * 33 // 2 - 4 * 96, "two strips of each side, what is computed on hop 0, a scale"


def test_no_two_hops_look_alike() -> None:
    picture = ElementTree.fromstring(svg.mask(causal(zigzag, ring, 64, 1 << 10)))
    shapes = [shape for shape in picture.iter(f"{SVG}rect") if shape.find(f"{SVG}title") is not None]
    assert [shape[0].text for shape in shapes] == [f"hop {hop}" for hop in range(64)]
    assert len({shape.attrib["fill"] for shape in shapes}) == 64
    numbers = labels(svg.mask(causal(zigzag, ring, 64, 1 << 10)))[-17:-1]
    assert numbers == [str(hop) for hop in range(0, 64, 4)], "as many as there is room for"


def test_the_timeline_tells_shares() -> None:
    assert labels(svg.timeline(causal(zigzag, ring, 4, 32))).count("25.0 %") == 4


def test_ownership_counts_tokens() -> None:
    assert labels(svg.ownership(causal(zigzag, ring, 4, 32)[0].queries)).count("8") == 4
