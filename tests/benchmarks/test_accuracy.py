"""The table of errors, on a problem that takes a second."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SMALL = ["--tokens", "96", "--head-dim", "16", "--sizes", "1", "2", "4"]


@pytest.fixture
def accuracy() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks/accuracy.py"
    spec = importlib.util.spec_from_file_location("accuracy", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("way", [["zigzag", "ring"], ["striped", "waves(2)"]], ids="-".join)
def test_errors_do_not_grow_with_the_number_of_ranks(
    accuracy: ModuleType, way: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert accuracy.main([*SMALL, "--layout", way[0], "--route", way[1]]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    _, header, *table, verdict = lines
    assert header.split() == ["out", "lse", "dq", "dk", "dv"]
    errors = {line[:14].strip(): [float(error) for error in line[14:].split()] for line in table}
    assert list(errors) == ["dense", *(f"cp {n}" for n in (1, 2, 4)), *(f"cp {n}, narrow" for n in (1, 2, 4))]
    # Of one block there is nothing to add up; of four, rounding after each costs accuracy, and ours stays the better.
    assert errors["cp 1, narrow"] == errors["cp 1"]
    for name in ("out", "dq", "dk", "dv"):
        column = header.split().index(name)
        assert errors["cp 4"][column] < errors["cp 4, narrow"][column]
        assert errors["cp 4"][column] < errors["dense"][column]
    assert verdict == "No error grows with the number of ranks beyond 1.25 times."


def test_errors_that_grow_are_named(
    accuracy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accuracy, "GROWTH", 0.5)
    assert accuracy.main(SMALL) == 1
    assert "dv on 4 ranks is off by " in capsys.readouterr().out


def test_other_kernels(accuracy: ModuleType) -> None:
    assert accuracy.main([*SMALL, "--kernel", "torch_flash"]) == 0
