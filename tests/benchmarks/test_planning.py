"""The table of planning times, on a stream that takes no time; the budgets themselves are for a quiet machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def planning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks/planning.py"
    spec = importlib.util.spec_from_file_location("planning", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TOKENS", 64)
    for number in ("DOCUMENTS", "RANKS", "PROVEN", "IMAGES", "NODES"):
        monkeypatch.setattr(module, number, 4)
    return module


@pytest.mark.parametrize(("factor", "verdict", "code"), [(1e6, "pass", 0), (0.0, "FAIL", 1)])
def test_every_case_and_route_has_a_verdict(
    planning: ModuleType,
    factor: float,
    verdict: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases = [case._replace(budget=case.budget * factor) for case in planning.CASES]
    monkeypatch.setattr(planning, "CASES", cases)
    given = [case._replace(budget=case.budget * factor) for case in planning.MASKS]
    monkeypatch.setattr(planning, "MASKS", given)
    monkeypatch.setattr(planning, "PROOF", planning.PROOF * factor)
    assert planning.main(["--repeats", "1"]) == code
    verdicts = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line]
    plans = sum(len(case.routes) for case in cases)
    of_masks = len(given) * len(planning.MASK_ROUTES)
    counts = plans, of_masks, len(planning.PROOFS)
    assert verdicts == [word for count in counts for word in ("budget", *[verdict] * count)]


def test_the_cases_are_what_they_say(planning: ModuleType) -> None:
    borders = [case.cu_seqlens for case in planning.CASES]
    assert [len(each) - 1 for each in borders] == [1, 4, 4, 4, 4, 4, 4, 1]
    assert [each[-1] for each in borders] == [64] * 7 + [6400]
