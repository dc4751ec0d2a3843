"""The page of the documentation that the census writes: one table for each version of transformers it has seen."""

from __future__ import annotations

import re
from collections import Counter
from datetime import date
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

Parts = dict[str, tuple[str, str]]  # what comes of each part of the comparison: a word, and what there is to say

SEVERITY = {word: place for place, word in enumerate(("exact", "n/a", "not built", "refused", "wrong", "crashes"))}
_ROW = re.compile(r"\| \S+ \| \w+ \| (\w[\w ]*) \|")  # of the table, with what a model is
PARTS = ("plain", "packed", "left", "right", "tokens")

INTRODUCTION = """# Supported models

Every type that `AutoModelForCausalLM` of transformers knows, as a tiny model with random weights on two processes,
compared with one process.

- *exact*: the loss, the logits and every gradient are those of one process, for a plain batch, packed documents, and
  rows that are padded at the left or at the right; so are 12 tokens of greedy decoding with a `ShardedCache`.
- *partly*: so is everything but what the last column names.
- *refused*: `ringattn.hf.parallelize` raises an error, whose reason is in the last column.
- *not built*: transformers does not make this model from its configuration alone, or does not run it in one process.

A part that transformers does not run in one process counts for nothing. `python benchmarks/census.py --write
docs/supported-models.md` makes this page.
"""


def verdict(parts: Parts) -> tuple[str, str]:
    """One word for a model, and what there is to say about it."""
    if "model" in parts:
        word, told = parts["model"]
        return word, _short(told)
    if parts["plain"][0] == "refused":
        return "refused", _short(parts["plain"][1])
    words = {word for word, _ in parts.values()}
    told = "; ".join(f"{part}: {_short(text) or word}" for part, (word, text) in parts.items() if word != "exact")
    for word in ("crashes", "wrong"):
        if word in words:
            return word, told
    return ("partly" if "refused" in words else "exact"), told


def summary(found: dict[str, Parts]) -> str:
    """How many models are what."""
    return _counts(Counter(verdict(parts)[0] for parts in found.values()))


def _counts(words: Counter[str]) -> str:
    told = ", ".join(f"{words[word]} {word}" for word in ("exact", "partly", "refused", "not built"))
    return f"of {words.total()} models {told}; {words['wrong'] or 'none'} wrong, {words['crashes'] or 'none'} crashing"


def write(page: str, found: dict[str, Parts]) -> None:
    """Put these models into the table of this version of transformers in the page, among those of other versions."""
    path = Path(page)
    sections = path.read_text().split("\n## ")[1:] if path.exists() else []
    tables = dict(section.split("\n", 1) for section in sections)
    name = f"transformers {transformers.__version__}"
    rows = {line.split(" | ")[0]: line for line in tables.get(name, "").splitlines() if _ROW.match(line)}
    rows |= {f"| {kind}": _row(kind, *verdict(parts)) for kind, parts in found.items()}
    tables[name] = _table([rows[key] for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if (key := f"| {kind}") in rows])
    newest = sorted(tables, key=lambda name: [int(part) for part in re.findall(r"\d+", name)], reverse=True)
    path.write_text("\n".join([INTRODUCTION, *(f"## {name}\n\n{tables[name].strip()}\n" for name in newest)]))


def _row(kind: str, word: str, told: str) -> str:
    told = re.sub(r"([|<*_])", r"\\\1", told)
    return f"| {kind} | {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]} | {word} | {told} |"


def _table(rows: list[str]) -> str:
    words = Counter(match[1] for row in rows if (match := _ROW.match(row)))
    told = f"{_counts(words)} ({date.today():%d %B %Y}, torch {torch.__version__})."
    return "\n".join([f"{told[0].upper()}{told[1:]}", "", "| type | class | | |", "|---|---|---|---|", *rows])


def _short(text: str) -> str:
    """What an error says, without the name of the class and what to do instead."""
    text = text.strip().splitlines()[-1] if text.startswith("Traceback") else " ".join(text.split())
    text = re.sub(r"^\w+ cannot run on a sharded sequence: ", "", text).split(" (supported are ")[0].rstrip(".")
    return text if len(text) <= 200 else text[:197] + "..."
