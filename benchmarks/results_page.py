"""Makes docs/how-fast.md and its charts from benchmarks/results: `python benchmarks/results_page.py` writes them.

Each file there is one series of runs: comments say the machine, the date, the commit and the commands, and a table in
CSV has the rows. A test keeps the page, the charts and the README's table as this makes them.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from charts import Bar, chart

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/how-fast.md"
PICTURES = ROOT / "docs/pictures"
LIBRARIES = ("ringattn", "ring-flash-attn", "context_parallel")
ROWS = (
    "zigzag",
    "zigzag packed: one sequence",
    "zigzag packed: four packings",
    "documents balanced",
    "window 4096 windowed",
    "stripe",
    "zigzag_llama3",
    "llama3",
    "ring contiguous",
    "ring contiguous packed: one sequence",
)
KERNELS = {"flash_attn_4": "FlashAttention 4", "cudnn": "cuDNN", "torch_flash": "PyTorch's FlashAttention 2"}


@dataclass(frozen=True, slots=True)
class Series:
    """One file: where and how it was measured, and its rows as they stand in the table."""

    name: str
    machine: str
    date: str
    commit: str
    command: str
    rows: list[dict[str, str]]


def read(path: Path) -> Series:
    """A file of results. Raises KeyError where a comment is missing."""
    lines = path.read_text(encoding="utf-8").splitlines()
    said = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    rows = list(csv.DictReader(line for line in lines if not line.startswith("# ")))
    return Series(path.stem, said["machine"], said["date"], said["commit"], said["command"], rows)


def series() -> list[Series]:
    """All of them, by name."""
    return [read(path) for path in sorted(RESULTS.glob("*.csv"))]


def cells(found: list[Series]) -> dict[tuple[str, ...], dict[str, tuple[str, str]]]:
    """For each (row, kernel, heads, tokens) what each library reached, and the series that it is of."""
    table: dict[tuple[str, ...], dict[str, tuple[str, str]]] = {}
    for one in found:
        for row in one.rows:
            key = row["row"], row["kernel"], row["heads"], row["tokens"]
            both = f"{row['forward']} / {row['with_backward']}" if row["forward"] else ""
            text = f"{both} ({row['note']})" if both and row["note"] else both or row["note"]
            table.setdefault(key, {})[row["library"]] = (text, one.name)
    return table


def place(item: tuple[tuple[str, ...], object]) -> tuple[int, ...]:
    """Where a row stands in a table."""
    row, kernel, heads, tokens = item[0]
    return ROWS.index(row), [*KERNELS].index(kernel), int(heads.partition(":")[0]), int(tokens)


def comparison(found: list[Series], number: dict[str, int]) -> list[str]:
    """The Markdown table of these series."""
    lines = [
        "| row | heads | tokens a GPU | ringattn | ring-flash-attn | `context_parallel` | run |",
        "|---|---|---|---|---|---|---|",
    ]
    for (row, kernel, heads, tokens), by in sorted(cells(found).items(), key=place):
        values = [by.get(library, ("", ""))[0] for library in LIBRARIES]
        name, run = titled(row, kernel), number[by["ringattn"][1]]
        lines.append(f"| {name} | {heads} | {int(tokens):,} | **{values[0]}** | {values[1]} | {values[2]} | {run} |")
    return lines


def titled(row: str, kernel: str) -> str:
    """A row's name, with its kernel where that is not the usual one."""
    return row if kernel == "flash_attn_4" else f"{row}, {KERNELS[kernel]}"


def of(found: list[Series], start: str) -> list[Series]:
    """The series whose names begin so."""
    return [one for one in found if one.name.startswith(start)]


def bars(found: list[Series]) -> list[tuple[str, list[Bar]]]:
    """What a chart shows of 8,192 tokens a GPU: of each row the libraries that ran, forward with backward."""
    groups: dict[str, list[Bar]] = {}
    for one in found:
        for row in one.rows:
            if row["tokens"] == "8192" and row["heads"] == "32:8" and row["with_backward"]:
                label = titled(row["row"], row["kernel"])
                groups.setdefault(label, []).append(Bar(row["library"], float(row["with_backward"])))
    return [(label, groups[label]) for label in sorted(groups, key=lambda label: ROWS.index(label.partition(",")[0]))]


def charts(found: list[Series]) -> dict[str, str]:
    """The text of every chart by its file's name, for a light page and for a dark one."""
    drawn = {}
    for gpus, start in (("two", "h200x2"), ("four", "h200x4")):
        title = f"{gpus.capitalize()} H200s, 8,192 tokens a GPU, forward and backward: % of perfect scaling"
        for theme in ("light", "dark"):
            drawn[f"how-fast-{gpus}-{theme}.svg"] = chart(title, bars(of(found, start)), theme)
    return drawn


def pictures(gpus: str) -> list[str]:
    """The two charts of which a page shows one."""
    text = f"Bars of ringattn, ring-flash-attn and context_parallel on {gpus} GPUs; the numbers are in the table below"
    return [
        line
        for theme in ("light", "dark")
        for line in (
            f"```{{image}} pictures/how-fast-{gpus}-{theme}.svg",
            f":alt: {text}",
            f":class: only-{theme}",
            "```",
        )
    ]


def runs(found: list[Series], number: dict[str, int]) -> list[str]:
    """Where, when and how each series was measured."""
    lines = ["| run | machine | date | commit | data |", "|---|---|---|---|---|"]
    lines += [f"| {number[s.name]} | {s.machine} | {s.date} | `{s.commit}` | `{s.name}.csv` |" for s in found]
    lines += ["", "The commands, the options that differ between runs of a series after each semicolon:", "", "```text"]
    return [*lines, *(f"{number[s.name]}  {s.command}" for s in found), "```"]


def single(found: list[Series], start: str) -> Series:
    """The series whose name begins so. Raises ValueError where there are several."""
    (series,) = of(found, start)
    return series


def others(found: list[Series], number: dict[str, int]) -> list[str]:
    """Memory, small shards and training, in the words of the page."""
    memory, small, llama = single(found, "memory"), single(found, "small-shards"), single(found, "train-llama")
    lines = [f"## Memory and milliseconds (run {number[memory.name]})", "", "| zigzag, 8,192 tokens a GPU | | |"]
    lines.append("|---|---|---|")
    lines += [f"| {row['measured']} | {row['library']} | {row['value']} {row['unit']} |" for row in memory.rows]
    lines += ["", f"## Small shards under a CUDA graph (run {number[small.name]})", ""]
    lines += ["How many times its kernels alone a pass takes:", "", "| tokens a GPU | forward | with backward |"]
    lines.append("|---|---|---|")
    lines += [f"| {int(row['tokens']):,} | {row['forward']} | {row['with_backward']} |" for row in small.rows]
    lines += ["", f"## Training a Llama of 1B shape on 65,536 tokens (run {number[llama.name]})", ""]
    lines += ["FSDP2 and context parallelism together; losses are equal to bf16's rounding.", ""]
    lines += ["| GPUs | tokens/s | GiB on each |", "|---|---|---|"]
    lines += [f"| {row['gpus']} | {int(row['tokens_per_second']):,} | {row['gib_each']} |" for row in llama.rows]
    return lines


HEAD = """# How fast

% NOTE

A number is 100 % x (T1 / N) / TN. T1 is the time that one GPU takes for the whole sequence with the same kernel, TN the
time of the slowest of N GPUs that share it; 100 % is perfect scaling. Each cell has two numbers: of a forward pass, and
of forward and backward together. All are causal, bf16, heads of 128 (32:8 is 32 query and 8 kv heads), on
FlashAttention 4 where a row names no other kernel. All libraries of a row are measured in one run, interleaved, with
PyTorch 2.11, flash-attn-4 4.0.0b36 and [ring-flash-attn](https://github.com/zhuzilin/ring-flash-attention) 0.1.8 on the
same kernel.

What *your* sizes would take is predicted by `ringattn plan`: [Choosing](concepts/choosing.md). Where the time goes, and
what was tried, is in the file `dev/LOG.md` of the repository.
"""
READING = """
## How to read this

- More than 100 % is a power limit: one GPU that does everything is at it, and four share the heat. Near it the same
  launches, timed twice, differ by up to 5 %. At 32,768 tokens on two GPUs a run with 8 repeats had 94.9 / 99.4 where
  the table's, with 20, has 98.1 / 98.7.
- ring-flash-attn runs on a stand-in for flash-attn over the kernel that is named, and without its Hugging Face module,
  which cannot be imported together with transformers 5. Its sliding windows give wrong results on shards.
- PyTorch's `context_parallel` runs with its all-gather, in the order of zigzag; on FlashAttention 4 it fails in PyTorch
  2.11. Empty cells were not run.
- The documents are 14 on two GPUs, of 128 to 4,096 tokens, and 19 on four, of 64 to 7,296; ring-flash-attn's llama3 is
  its fastest way for them. With 64 query heads each of four GPUs reaches 550 TFLOP/s forward and 468 backward on them.
- Eight GPUs were not to be had.
"""


def page(found: list[Series]) -> str:
    """The whole page."""
    number = {one.name: index for index, one in enumerate(found, 1)}
    note = "Made by `python benchmarks/results_page.py` from benchmarks/results: change the data, not this page."
    parts = [HEAD.replace("NOTE", note)]
    for title, gpus, starts in (("Two GPUs", "two", ("h200x2",)), ("Four GPUs", "four", ("h200x4", "h100x4"))):
        chosen = [one for start in starts for one in of(found, start)]
        parts.append("\n".join([f"## {title}", "", *pictures(gpus), "", *comparison(chosen, number)]) + "\n")
    parts.append("\n".join(others(found, number)))
    return "\n".join([*parts, READING, "## The runs", "", *runs(found, number), ""])


def readme_table(found: list[Series]) -> str:
    """The README's five rows, of two H200s."""
    known = cells(of(found, "h200x2"))
    wanted = (
        ("zigzag, 8,192 tokens a GPU", "zigzag"),
        ("packed sequences, zigzag (varlen)", "zigzag packed: four packings"),
        ("14 packed documents, `balanced`", "documents balanced"),
        ("sliding window of 4,096, `windowed(4096)`", "window 4096 windowed"),
    )
    lines = ["| two H200s, FlashAttention 4 | ringattn | ring-flash-attn |", "|---|---|---|"]
    for title, row in wanted:
        by = known[row, "flash_attn_4", "32:8", "8192"]
        lines.append(f"| {title} | **{by['ringattn'][0]}** | {by['ring-flash-attn'][0]} |")
    ours, theirs = (row["value"] for row in single(found, "memory").rows[:2])
    return "\n".join([*lines, f"| memory that forward and backward add | **{ours} MiB** | {theirs} MiB |", ""])


def main() -> None:
    """Write the page and its charts."""
    found = series()
    PAGE.write_text(page(found), encoding="utf-8")
    for name, text in charts(found).items():
        (PICTURES / name).write_text(text, encoding="utf-8")
    print(readme_table(found))


if __name__ == "__main__":
    main()
