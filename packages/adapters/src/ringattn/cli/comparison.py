"""What `ringattn demo` does and shows: one process reads a text, several read it in parts, and the two are compared."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ringattn.cli import group, pictures, reference, smollm
from ringattn.cli.reference import Reference
from ringattn.cli.worker import Job, Result
from ringattn_core.plan.schedule import Schedule

TOLERANCE = 1e-4  # of a float32 model whose attention is computed in float64 on both sides, see `exact`
console = Console(highlight=False)


def agree(schedules: tuple[Schedule, ...], tokens: int, layout: str, route: str) -> bool:
    """Run the demo; does it finish, and do both results agree?"""
    try:
        smollm.check()
        return _show(schedules, tokens, layout, route)
    except (smollm.MissingError, group.FailedError) as error:
        console.print(Text(str(error), style="red"))
        return False


def _show(schedules: tuple[Schedule, ...], tokens: int, layout: str, route: str) -> bool:
    cp = len(schedules)
    console.print(
        Panel(
            f"[bold]SmolLM2-135M-Instruct[/] reads [bold]{tokens:,}[/] tokens of Python's standard library: in one "
            f"process, and then on [bold]{cp}[/] that hold a part of the text each.\nEvery token still attends to all "
            "tokens before it, wherever they are.",
            title="ringattn",
            border_style="cyan",
        )
    )
    with tempfile.TemporaryDirectory(prefix="ringattn-") as folder:
        model, ids = _load(tokens)
        _explain(schedules, layout, route)
        threads = max(1, (os.cpu_count() or 1) // cp)
        expected, results = _run(model, ids, Job(model.config, Path(folder), cp, layout, route, threads))
    return _compare(expected, results, tokens)


def _heading(number: int, title: str, note: str = "") -> None:
    console.print(f"\n[bold cyan]{number}[/] [bold]{title}[/] [dim]{note}[/]")


def _progress() -> Progress:
    return Progress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", style="dim"),
        TimeElapsedColumn(),
        console=console,
    )


def _load(tokens: int) -> tuple[Any, Any]:
    _heading(1, "Loading", f"{smollm.FILE}, Llama architecture, as float32")
    with _progress() as progress, smollm.quiet():
        task = progress.add_task("tokenizer", total=2, unit="parts")
        tokenizer = smollm.load_tokenizer()
        ids = smollm.text(tokenizer, tokens)
        progress.update(task, advance=1, description="weights  ")
        model = smollm.load_model()
        progress.update(task, advance=1, description="loaded   ")
    return model, ids


def _explain(schedules: tuple[Schedule, ...], layout: str, route: str) -> None:
    width = console.width - 2
    _heading(2, "Who holds which tokens", f"layout {layout}")
    pictures.show(console, pictures.ownership(schedules[0].queries, width), margin=2)
    _heading(3, "Who computes which part of the attention matrix, and when", f"route {route}")
    pictures.show(console, pictures.mask(schedules, width, most=min(24, max(16, 4 * len(schedules)))), margin=2)
    pictures.show(console, pictures.timeline(schedules, width), margin=2)


def _run(model: Any, ids: Any, job: Job) -> tuple[Reference, list[Result]]:
    _heading(4, "Running", "the same weights, the same text")
    layers = model.config.num_hidden_layers
    with _progress() as progress:
        alone = progress.add_task("one process", total=layers, unit="layers")
        expected = reference.run(model, ids, job.files, lambda: progress.advance(alone))
        tasks = [
            progress.add_task(f"[{pictures.color(rank)}]rank {rank:<6}[/]", total=None, unit="starting")
            for rank in range(job.cp)
        ]
        results: dict[int, Result] = {}
        for event in group.run(job):
            if event.kind == "ready":
                progress.reset(tasks[event.rank], total=layers, unit="layers")
            elif event.kind == "layer":
                progress.advance(tasks[event.rank])
            else:
                results[event.rank] = event.content
    return expected, [results[rank] for rank in range(job.cp)]


def _compare(expected: Reference, results: list[Result], tokens: int) -> bool:
    _heading(5, "Compared", "a float32 model, its attention in float64 on both sides")
    apart = abs(results[0].loss - expected.loss)
    difference, largest = (max(getattr(result, name) for result in results) for name in ("difference", "largest"))
    table = Table(box=None, padding=(0, 3, 0, 2), header_style="dim")
    for title in ("", "one process", f"{len(results)} processes", "difference"):
        table.add_column(title, justify="right" if title else "left")
    table.add_row("loss", f"{expected.loss:.6f}", f"{results[0].loss:.6f}", f"{apart:.1e}")
    table.add_row("logits", f"up to {largest:.1f}", "", f"{difference:.1e}")
    table.add_row("seconds", f"{expected.seconds:.1f}", f"{max(result.seconds for result in results):.1f}", "")
    console.print(table)
    agreed = apart <= TOLERANCE and difference <= TOLERANCE
    verdict = "[bold green]✓ The same[/]" if agreed else "[bold red]✗ Not the same[/]"
    console.print(f"\n  {verdict} within {TOLERANCE:.0e}, for {tokens:,} tokens on {len(results)} processes.")
    return agreed
