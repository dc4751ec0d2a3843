"""`ringattn check` says that everything is exact here, and what is not if a kernel or a layout is broken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ringattn import check
from ringattn.check import main
from ringattn.cli.main import app
from ringattn_core.kernels.reference import Reference
from ringattn_core.plan import layout
from ringattn_core.run.kernel import Block, Grads

FORWARD, BACKWARD = Reference.forward, Reference.backward


def test_everything_is_exact_here() -> None:
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 0, result.output
    # 5 layouts, 5 routes, and 2 kernels: PyTorch's and the reference, both in float64.
    rows = [words for line in result.output.splitlines() if len(words := line.split()) == 4]
    table = {(name, route): cells for name, route, *cells in rows}
    assert len(table) == 25 and {name for name, _ in table} >= {*layout.LAYOUTS, "windowed(32)"}
    assert all(0 < float(cell) < 1e-3 for cells in table.values() for cell in cells)
    assert result.output.splitlines()[-1] == "All 50 combinations are exact."


def few(capsys: pytest.CaptureFixture[str], routes: tuple[str, ...] = ("ring",), *, wrong: int) -> str:
    """The verdict on the reference, in one layout on two ranks."""
    assert main(2, ["zigzag"], routes, ["reference"]) == (1 if wrong else 0)
    verdict = capsys.readouterr().out.split("\n\n")[-1]
    count = len(routes)
    expected = f"{wrong} of {count} combinations are WRONG:" if wrong else f"All {count} combinations are exact."
    assert verdict.startswith(expected)
    return verdict


def test_a_wrong_result_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def off(*given: Any) -> tuple[Block, torch.Tensor | None]:
        block, state = FORWARD(*given)
        return Block(block.out * (1 + 1e-8), block.lse), state

    few(capsys, ("ring", "gather"), wrong=0)
    monkeypatch.setattr(Reference, "forward", off)
    verdict = few(capsys, ("ring", "gather"), wrong=2)
    assert "zigzag, ring, reference cpu float64: dk is off by " in verdict and "more than 1.0e-10" in verdict


def test_the_table_marks_what_its_rule_calls_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors that are all written 1: those of more than the limit are marked, as the line above the table says."""
    for error, sign in ((0.996, ""), (1.0, ""), (1.0 + 1e-12, "!"), (1.004, "!")):
        found = check.Finding(error, "as given")
        monkeypatch.setattr(check, "compare", lambda *_, found=found: found)
        assert main(2, ["zigzag"], ["ring"], ["reference"]) == (1 if sign else 0)
        _, rule, _, header, row, *_ = capsys.readouterr().out.splitlines()
        assert "more than 1 is wrong, and marked !." in rule
        assert row.split() == ["zigzag", "ring", f"1{sign}"]
        assert row.rstrip().removesuffix(sign) == row[: len(header.rstrip())]  # a column under its title


def test_a_gradient_that_is_nan_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def nan(*given: Any) -> Grads:
        dq, dk, dv = BACKWARD(*given)
        return Grads(dq, dk, dv * torch.nan)

    monkeypatch.setattr(Reference, "backward", nan)
    assert "dv is off by inf" in few(capsys, wrong=1)


def test_an_error_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*given: Any) -> Grads:
        raise RuntimeError("no such launch")

    monkeypatch.setattr(Reference, "backward", fail)
    assert "zigzag, ring, reference cpu float64: RuntimeError: no such launch" in few(capsys, wrong=1)


def test_nothing_that_was_checked_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(2, ["zigzag"], ["ring"], ["flash_attn_9"]) == 1
    assert "nothing was checked" in capsys.readouterr().out
