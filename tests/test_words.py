"""One word for one thing: names that were replaced do not come back, and the glossary names what exists."""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs/concepts/names.md"
# They say what was true when they were written; and this file names the old names.
LEFT_OUT = {"dev/LOG.md", "CHANGELOG.md", "tests/test_words.py"}
OLD_NAMES = {
    "Alone": "LocalTransport",
    "Boxed": "CoalescedRows",
    "ColumnSum": "GradAccumulator",
    "Compact": "GatheredLaunch",
    "Division": "Sharding",
    "FusedColumnSum": "FusedSum",
    "FusedPartial": "FusedOutAccumulator",
    "FusedRowSum": "FusedSum",
    "NOWHERE": "NO_OUT_GRADS",
    "Partial": "OutAccumulator",
    "Piece": "KeySlice",
    "Pieces": "KeySlices",
    "Places": "OutGrads",
    "Pull": "OneSided",
    "Request": "CallSpec",
    "RowSum": "GradAccumulator",
    "Side": "CopyStream",
    "Solo": "SingleRank",
    "ThreadWindows": "ThreadSharedBuffers",
    "Touch": "RowWrite",
    "Touches": "RowWrites",
    "Traffic": "RouteTable",
    "bells": "signals",
    "boxed": "coalesced_rows",
    "mend": "gather_outputs",
    "parcel": "packed_kv",
    "row_touches": "row_writes",
    "takes_delta": "accepts_delta",
    "twin": "second_communicator",
    "unfit": "why_unsupported",
    "untraced": "no_compile",
}
# Words that mean something elsewhere, and are old names in these folders.
OLD_NAMES_OF = {
    "packages/core/": {
        "begun": "early_rows",
        "fills": "supports_out",
        "lent": "outgoing_rows",
        "piece": "key_slice",
        "pieces": "key_slices",
        "rounds": "returns_input_dtype",
        "settled": "local_rows",
        "traffic": "route_table",
    },
    "packages/comms/": {"piece": "key_slice", "pieces": "key_slices", "window": "shared_buffer"},
}
OLD_METHODS = {"collect": "finish", "give": "send_grads"}  # of transports, so in core and comms
OLD_MODULES = {
    "ringattn_comms": ["boxed", "parcel", "pull", "side", "window"],
    "ringattn_core": ["boxes", "compact", "lanes", "settled", "totals", "touch"],
    "ringattn": ["alike", "refuse", "untraced"],
}
# The words of an idiom may stand on two lines, between which a comment, a quotation or a string literal goes on.
IDIOMS = re.compile(
    r"\b(at hand|so many|but for|its own|nobody|beside|of which|as many as)\b".replace(" ", r"[\s#>*\"']+f?[\"']?"),
    re.IGNORECASE,
)


def tracked() -> dict[str, str]:
    """The text of every source and page by its path."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("the files of the project are those that git knows, and this is no repository")
    names = sorted(name for name in {*listed.stdout.splitlines()} - LEFT_OUT if (ROOT / name).exists())
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names}


def code(name: str, text: str) -> str:
    """What is code: of a module its names, of a page its fences and what is in backticks."""
    if name.endswith(".py"):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        return " ".join(token.string for token in tokens if token.type in (tokenize.NAME, tokenize.OP))
    parts = text.split("```")
    return " ".join([*parts[1::2], *(quoted for part in parts[::2] for quoted in re.findall(r"`([^`]+)`", part))])


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def complaints(name: str, text: str) -> list[str]:
    names = code(name, text)
    wrong = dict(OLD_NAMES)
    for folder, names_there in OLD_NAMES_OF.items():
        wrong |= names_there if name.startswith(folder) and name.endswith(".py") else {}
    found = [f"{name} says {old}: it is {new} now" for old, new in wrong.items() if old in words(names)]
    if name.startswith(("packages/core/", "packages/comms/")) and name.endswith(".py"):
        for old, method in OLD_METHODS.items():
            if re.search(rf"(\bdef|\.) {old}\b", names):
                found.append(f"{name} has a method {old}: it is {method} now")
    return found


def test_old_names_do_not_come_back() -> None:
    found = [complaint for name, text in tracked().items() for complaint in complaints(name, text)]
    assert not found, "\n".join(found)


def test_an_old_name_is_noticed() -> None:
    assert complaints("tests/some.py", "comm = Solo()\n") == ["tests/some.py says Solo: it is SingleRank now"]
    assert complaints("docs/some.md", "A `Division` of tokens\n")
    assert not complaints("docs/some.md", "Division of labour\n")
    assert complaints("packages/core/some.py", "transport.give(step)\n")
    assert complaints("packages/core/some.py", "settled = 1\n")
    assert not complaints("packages/adapters/some.py", "settled = relay.give()  # Solo\n")


@pytest.mark.parametrize("package", OLD_MODULES)
def test_old_modules_do_not_come_back(package: str) -> None:
    for path in ROOT.glob(f"packages/*/src/{package}/**/*.py"):
        assert path.stem not in OLD_MODULES[package], f"{path.relative_to(ROOT)} has the name of a renamed module"


def test_idioms_do_not_come_back() -> None:
    pages = {
        name: text
        for name, text in tracked().items()
        if name.endswith(".md") or (name.startswith("packages/") and name.endswith(".py"))
    }
    having = {name: match[0] for name, text in pages.items() if (match := IDIOMS.search(text))}
    assert not having, f"say it in plain technical English: {having}"


@pytest.mark.parametrize(
    "text",
    [
        "The keys at hand",
        '"""Brings the keys that are at\n    hand."""',
        "# There are as\n# many as ranks.",
        "> A rank has its\n> own keys.",
        "* the ranks, of\n  which there are 4",
        'raise ValueError("all "\n    "but " f"for one")',
    ],
)
def test_an_idiom_is_noticed_on_two_lines_as_well(text: str) -> None:
    assert IDIOMS.search(text)
    assert not IDIOMS.search("attention's sum of\n\na handful, so\nin many cases")


def rows() -> list[list[str]]:
    """The glossary's rows: term, meaning, where, elsewhere."""
    lines = [line for line in GLOSSARY.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def test_the_glossary_names_modules_that_exist_and_what_is_in_them() -> None:
    assert len(rows()) > 40
    for term, _, where, _ in rows():
        modules = re.findall(r"`([\w.]+)`", where)
        assert modules or where in ("everywhere", "-"), f"{term}: {where} is no place"
        texts = []
        for module in modules:
            spec = find_spec(module)
            assert spec is not None and spec.origin is not None, f"{term}: there is no module {module}"
            texts.append(Path(spec.origin).read_text(encoding="utf-8"))
        for name in re.findall(r"`([A-Za-z_]+)`", term) if modules else ():
            assert any(re.search(rf"\b{name}\b", text) for text in texts), f"{name} is not in {modules}"


def test_no_term_of_the_glossary_is_there_twice() -> None:
    terms = [term for term, *_ in rows()]
    assert len(terms) == len(set(terms))
