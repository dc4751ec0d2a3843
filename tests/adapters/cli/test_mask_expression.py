"""Masks in words of a command line: they are those that Python makes, and whatever else is refused with a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringattn import masks
from ringattn.cli.mask_expression import MAKERS, read

PAGE = Path(__file__).parents[3] / "docs/concepts/masks.md"


def test_the_page_shows_how_the_example_of_every_maker_is_made() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| .* \| (?:`|<code>)(.*?)(?:`|</code>) \|$", PAGE.read_text(encoding="utf-8"))
    shown = {name: text.replace("&#124;", "|") for name, text in rows}
    assert shown.keys() == masks.examples().keys()
    assert eval(shown.pop("of_mod"), vars(masks)) == masks.examples()["of_mod"]  # the one that needs Python
    for name, text in shown.items():
        assert read(text) == masks.examples()[name], name


@pytest.mark.parametrize(
    "text",
    [
        "causal(12) | two_way([range(2, 5)])",
        "(full(12) - causal(12)) & two_way([range(2, 5), range(7, 11)])",
        "packed([3, 4], window=(-1, -1), key_lengths=[5, 2])",
        "shared_prefix(8, [4] * 3) | first(20, 2) - window(20, 3, right=1)",
        "blocks([[1, 0], [True, False]], (4, 2))",
        "slices([(0, 6)], [(0, 6)], ['inverse causal'], shape=(8, 9))",
        " of_dense([[1, 0], [1, 1]],\n max_tiles=3) ",
    ],
)
def test_a_text_is_the_mask_that_python_makes_of_it(text: str) -> None:
    assert read(text) == eval(text.strip(), vars(masks))


def test_numbers_are_written_as_in_other_options() -> None:
    assert read("window(64k, 1.5k) | two_way([range(1e3, 2K)], 1M)") == (
        masks.window(65536, 1536) | masks.two_way([range(1000, 2048)], 1 << 20)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("casual(12)", "There is no maker of masks 'casual'; there are 'blocks', .* Did you mean 'causal'"),
        ("causal", "causal makes a mask when it is called: causal(num_queries, num_keys=None)."),
        ("causal()", "causal: missing a required argument: 'num_queries'. It is causal(num_queries, num_keys=None)."),
        ("causal(1, 2, 3)", "causal: too many positional arguments. It is causal("),
        ("packed([3], widow=3)", "packed: got an unexpected keyword argument 'widow'. It is packed(lengths, window="),
        ("causal('12')", "causal: num_queries must be a number, got '12'."),
        ("causal(True)", "causal: num_queries must be a number, got True."),
        ("causal(3, 'x')", "causal: num_keys must be a number or None, got 'x'."),
        ("two_way([3])", "two_way: ranges must be a list [range(start, stop), ...], got [3]."),
        ("two_way(range(3))", "two_way: ranges must be a list [range(start, stop), ...], got range(0, 3)."),
        ("packed(range(3))", "packed: lengths must be a list [a number, ...], got range(0, 3)."),
        ("slices([[0, 6]], [(0, 6)], [0])", "q_ranges must be a list [(a number, a number), ...], got [[0, 6]]."),
        ("end_to_end([causal(3), 4])", "end_to_end: parts must be a list [a mask, ...], got [<Mask of 3 x 3 tokens, "),
        ("prefix(12, 40)", "prefix: A prefix of 12 tokens has 0 to 12 of them, got 40."),
        ("range(3, 4, 5)", "A range is range(start, stop) of two numbers"),
        ("two_way([range(2, 'x')])", "A range is range(start, stop) of two numbers"),
        ("of_mod(3)", "of_mod takes a function, which cannot be written here"),
        (
            "3",
            "3 is a number, not a mask. Write 'causal(12) | two_way([range(2, 5)])', for example; makers are blocks, ",
        ),
        ("[causal(3)]", "[causal(3)] is a list, not a mask."),
        ("causal(3) | 4", "In causal(3) | 4, |, & and - are between masks; got a mask, a number."),
        ("4 * [4]", "In 4 * [4], * repeats a list, as in [1024] * 24; got a number, a list."),
        ("packed([1] * 2M)", "[1] * 2097152 has 2,097,152 entries, more than 1,048,576."),
        ("causal(3) + full(3)", "causal(3) + full(3) has no meaning in a mask."),
        ("causal(2.5)", "2.5 has no meaning in a mask."),
        ("causal(0k)", "'0k' is no number of tokens: write 8192, 64k, 1M or 1e6."),
        ("causal(12) |", "'causal(12) |' cannot be read: invalid syntax."),
        ("", "'' cannot be read: invalid syntax."),
        ("(" * 500, "cannot be read: too many nested parentheses"),
        ("-" * 200_000 + "1", "A text of 200,001 characters is nested too deeply."),
    ],
)
def test_a_mistake_is_answered_by_what_is_wrong_and_what_is_right(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")) as raised:
        read(text)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "causal(3).draw()",
        "causal(3).__class__",
        "(lambda: causal(3))()",
        "[causal(3) for _ in [0]][0]",
        "causal(*[3])",
        "causal(**{'num_queries': 3})",
        "causal(open('x'))",
        "f'{causal(3)}'",
        "(x := causal(3))",
        "causal(3) if True else causal(4)",
    ],
)
def test_nothing_is_executed(text: str) -> None:
    with pytest.raises(ValueError, match=r"has no meaning in a mask|There is no maker of masks"):
        read(text)


SCALARS = ["3", "-1", "0", "True", "None", "'full'", "(1, 2)", "range(2)", "range(1, 3)", "causal(3)"]
LISTS = ["[]", "[2, 3]", "[-1, 0]", "[(0, 2)]", "[range(1, 3)]", "[[1, 0], [0, 1]]", "['causal']", "[full(2)]"]
PARTS = st.sampled_from([*SCALARS, *LISTS, "[2] * 3"])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(MAKERS)), st.lists(PARTS, max_size=4), st.sampled_from(["|", "&", "-", "*", "+"]), PARTS)
def test_any_arguments_make_a_mask_or_a_message(name: str, arguments: list[str], operator: str, other: str) -> None:
    for text in (call := f"{name}({', '.join(arguments)})", f"{call} {operator} {other}"):
        try:
            assert isinstance(read(text), masks.Mask)
        except ValueError as error:
            assert len(str(error)) > 20
