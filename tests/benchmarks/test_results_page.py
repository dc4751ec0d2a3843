"""The page of results and its charts say what the data says, and so does the README's table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import charts  # noqa: E402
import results_page  # noqa: E402


def test_the_page_and_its_charts_are_current() -> None:
    found = results_page.series()
    again = "make them again: python benchmarks/results_page.py"
    assert results_page.page(found) == results_page.PAGE.read_text(encoding="utf-8"), again
    drawn = results_page.charts(found)
    assert {name: (results_page.PICTURES / name).read_text(encoding="utf-8") for name in drawn} == drawn, again


def test_the_table_of_the_readme_is_of_the_data() -> None:
    table = results_page.readme_table(results_page.series())
    assert len(table.splitlines()) == 7 and table in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_series_says_where_when_and_how() -> None:
    for one in results_page.series():
        assert one.machine and one.date.startswith("2026-") and one.command.startswith("torchrun ") and one.rows
        assert len(one.commit) == 7 and set(one.commit) <= set("0123456789abcdef")


def test_a_series_without_a_commit_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("# machine: one\n# date: 2026-11-30\nrow,forward\nzigzag,1\n")
    with pytest.raises(KeyError, match="commit"):
        results_page.read(tmp_path / "some.csv")


def test_a_bar_is_as_long_as_its_number() -> None:
    drawn = charts.chart("Title", [("row", [charts.Bar("one", 50.0), charts.Bar("<two>", 100.0)])], "dark")
    widths = [
        float(part.partition('"')[0]) for part in drawn.split(' width="')[1:] if f'height="{charts.LINE - 2}"' in part
    ]
    assert len(widths) == 2 and widths[1] == pytest.approx(2 * widths[0], abs=0.1) and "&lt;two&gt;" in drawn


def test_every_entry_of_the_log_begins_with_three_lines() -> None:
    entries = (ROOT / "dev/LOG.md").read_text(encoding="utf-8").split("\n## ")[1:]
    for entry in entries:
        title, *lines = entry.splitlines()
        summary = [line for line in lines[1:5] if line.startswith("> ")]
        assert lines[0] == "" and len(summary) == 3, f"{title}: say in three quoted lines what came of it"
