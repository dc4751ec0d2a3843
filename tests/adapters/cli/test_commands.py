"""`ringattn plan`, `draw` and `doctor`: what they print, and what they answer to a mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ringattn.cli import sizes
from ringattn.cli.main import app


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.output


def test_plan() -> None:
    output = run("plan", "--seqlen", "1M", "--cp", "8", "--layout", "zigzag", "--window", "4096", "--gpu", "h200")
    assert "1,048,576 tokens on 8 ranks" in output and "auto" in output and "fastest" in output
    rows = {line.split()[1]: line for line in output.splitlines() if line.startswith("│")}
    assert rows.keys() == {"ring", "waves", "waves(3)", "gather"}
    full = run("plan", "--seqlen", "1M", "--cp", "8")
    assert "s │" in full and "12.5%" in full  # of the work: balanced


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
    for command in ("demo", "plan", "draw"):
        assert "ringattn" in run(command, "--help") and "Example" in run(command, "--help")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--gpu", "h300"], "Did you mean 'h200'"),
        (["plan", "--seqlen", "many"], "8192, 64k or 1M"),
        (["plan", "--kv-heads", "5"], "must divide"),
        (["draw", "--route", "rings"], "Did you mean 'ring'"),
        (["draw", "--route", "double_ring(3)"], "double_ring(3)"),
        (["draw", "--svg", "/nowhere/mask.svg"], "cannot be written"),
        (["darw"], "draw"),
    ],
)
def test_a_mistake_gets_a_message_and_no_trace(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output


def test_sizes() -> None:
    assert [sizes.tokens(text) for text in ("8192", "64k", "1M", "1.5k", "8,192")] == [8192, 65536, 2**20, 1536, 8192]
    assert (sizes.data(512), sizes.data(3 * 2**30), sizes.duration(0.0123)) == ("512 B", "3.00 GiB", "12.3 ms")


def test_without_the_extra() -> None:
    program = "import sys; sys.modules['typer'] = None; from ringattn.cli.entry import main; main()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (
        result.returncode == 1 and "pip install 'ringattn[cli]'" in result.stderr and "Traceback" not in result.stderr
    )
