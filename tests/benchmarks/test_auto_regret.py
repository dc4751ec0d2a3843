"""What `auto` loses by its own predictions, over a few small random problems and the one that it lost most in."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import auto_regret

from ringattn_core.look.shape import Shape
from ringattn_core.plan.layout import Sharding, contiguous


def test_auto_loses_little() -> None:
    lost = sorted(problem.lost() for problem in islice(auto_regret.problems(0, 4, 4096), 40))
    assert lost[37] <= auto_regret.TYPICAL and lost[-1] <= auto_regret.MOST


def test_many_short_documents_are_not_taken_for_a_long_one() -> None:
    short = Sharding(contiguous, tuple(16384 * index // 60 for index in range(61)), 8)
    assert auto_regret.Problem(short, (4095, 0), Shape(32, 8, 128), one_sided=False).lost() < 0.02


@pytest.mark.parametrize(("limit", "code"), [(1.0, 0), (-1.0, 1)])
def test_a_verdict_is_the_exit_code(
    limit: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(auto_regret, "MOST", limit)
    monkeypatch.setattr(auto_regret, "TYPICAL", limit)
    assert auto_regret.main(["--problems", "3", "--ranks", "2", "--tokens", "1024"]) == code
    first, *worst = filter(None, capsys.readouterr().out.splitlines())
    assert first.startswith("3 problems: auto loses") and len(worst) == 3
