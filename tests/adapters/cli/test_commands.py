"""`ringattn plan`, `draw` and `doctor`: what they print, and what they answer to a mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ringattn.cli import sizes
from ringattn.cli.main import app
from ringattn.cli.progress import followed


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.output


def test_plan() -> None:
    output = run("plan", "--seqlen", "1M", "--cp", "8", "--layout", "zigzag", "--window", "4096", "--gpu", "h200")
    assert "1,048,576 tokens on 8 ranks" in output and "waves ← backward" in output and "gather ← forward" in output
    assert [line.split()[0] for line in output.splitlines() if " ms " in line] == [
        "ring",
        "waves",
        "waves(3)",
        "gather",
        "auto",
    ]
    full = run("plan", "--seqlen", "1M", "--cp", "8")
    assert " s " in full and "12.5%" in full  # of the work: balanced


def test_plan_says_what_differs() -> None:
    output = run("plan", "--seqlen", "4", "--cp", "8")
    assert "4 of the 8 ranks hold no token at all" in output and "TFLOP" in output
    assert "no token" not in run("plan", "--seqlen", "64k", "--cp", "8", "--window", "1k")


@pytest.mark.parametrize("seqlen", ["4", "64k", "1M", "16M"])
def test_the_table_fits_a_terminal(seqlen: str) -> None:
    output = CliRunner().invoke(app, ["plan", "--seqlen", seqlen, "--cp", "4"], env={"COLUMNS": "80"}).output
    assert "←" in output and "…" not in output  # the sign that something was cut


def test_no_bar_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(followed([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_draw(tmp_path: Path) -> None:
    output = run("draw", "--seqlen", "4", "--cp", "2", "--layout", "contiguous", "--route", "ring")
    assert "0 | 0 · · · |\n0 | 0 0 · · |\n1 | 1 1 0 · |\n1 | 1 1 0 0 |" in output
    assert "rank 1 |" in output
    picture = tmp_path / "mask.svg"
    assert str(picture) in run("draw", "--seqlen", "7,5,12", "--window", "4", "--svg", str(picture)).replace("\n", "")
    assert picture.read_text().startswith("<svg")


def test_doctor() -> None:
    output = run("doctor")
    for line in ("torch", "✓  reference", "✓  torch_flash", "–  flash_attn_4", "✓  threads", "peer access"):
        assert line in "\n".join(
            " ".join(part.split()).replace("✓ ", "✓  ").replace("– ", "–  ") for part in output.splitlines()
        )


def test_help_has_examples() -> None:
    for command in (["demo"], ["plan"], ["draw"], ["doctor"], []):
        output = run(*command, "--help")
        assert "Example" in output and " ".join(["ringattn", *command]) in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--gpu", "h300"], "Did you mean 'h200'"),
        (["plan", "--seqlen", "many"], "8192, 64k or 1M"),
        (["plan", "--seqlen", "0"], "--seqlen"),
        (["plan", "--seqlen", "-4k"], "'-4k' is no number of tokens"),
        (["plan", "--seqlen", "1.3"], "8192, 64k or 1M"),
        (["plan", "--seqlen", "10", "--documents", "11"], "'--documents': 10 tokens are too few for 11"),
        (["plan", "--window", "0"], "'--window'"),
        (["plan", "--window", "-3"], "'-3' is no number of tokens"),
        (["plan", "--cp", "0"], "'--cp'"),
        (["plan", "--cp", "many"], "'--cp'"),
        (["plan", "--cp", "257"], "256"),
        (["plan", "--layout", "spiral"], "'contiguous', 'zigzag', 'striped'"),
        (["plan", "--heads", "0"], "'--heads'"),
        (["plan", "--kv-heads", "5"], "'--kv-heads': it must divide --heads = 32, got 5"),
        (["plan", "extra"], "extra"),
        (["draw", "--route", "rings"], "'--route': There is no route 'rings'"),
        (["draw", "--route", "rings"], "Did you mean 'ring'"),
        (["draw", "--route", "waves(0)"], "a count of 1 or more, got 0"),
        (["draw", "--route", ""], "'gather'"),
        (["draw", "--seqlen", "4,,5"], "8192, 64k or 1M"),
        (["draw", "--window", "-1"], "'--window'"),
        (["draw", "--svg", "/"], "'--svg': / cannot be written: Is a directory"),
        (["doctor", "--verbose"], "--verbose"),
        (["draw", "--route", "double_ring(3)"], "double_ring(3)"),
        (["draw", "--svg", "/nowhere/mask.svg"], "cannot be written"),
        (["darw"], "draw"),
    ],
)
def test_a_mistake_gets_a_message_and_no_trace(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "240"})
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output


def test_sizes() -> None:
    assert [sizes.tokens(text) for text in ("8192", "64k", "1M", "1.5k", "8,192", "8_192")] == [
        8192,
        65536,
        2**20,
        1536,
        8192,
        8192,
    ]
    with pytest.raises(typer.BadParameter, match="'7,5,12' is no number of tokens"):
        sizes.tokens("7,5,12")
    assert [sizes.data(size) for size in (512, 1010 * 2**20, 3 * 2**30)] == ["512 B", "0.986 GiB", "3 GiB"]
    assert sizes.data(2**40) == "1 TiB" and sizes.duration(0.0123) == "12.3 ms" and sizes.digits(3941.2) == "3,940"


def test_without_the_extra() -> None:
    program = "import sys; sys.modules['typer'] = None; from ringattn.cli.entry import main; main()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (
        result.returncode == 1 and "pip install 'ringattn[cli]'" in result.stderr and "Traceback" not in result.stderr
    )
