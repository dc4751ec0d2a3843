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
    counts = Counter(verdict(parts)[0] for parts in found.values())
    told = ", ".join(f"{counts[word]} {word}" for word in ("exact", "partly", "refused", "not built"))
    return f"of {len(found)} models {told}; {counts['wrong'] or 'none'} wrong, {counts['crashes'] or 'none'} crashing"


def write(page: str, found: dict[str, Parts]) -> None:
    """Put the table of this version of transformers into the page, among those of others."""
    path = Path(page)
    sections = path.read_text().split("\n## ")[1:] if path.exists() else []
    tables = {section.splitlines()[0]: section.split("\n", 1)[1].strip() for section in sections}
    tables[f"transformers {transformers.__version__}"] = _table(found)
    newest = sorted(tables, key=lambda name: [int(part) for part in re.findall(r"\d+", name)], reverse=True)
    path.write_text("\n".join([INTRODUCTION, *(f"## {name}\n\n{tables[name]}\n" for name in newest)]).rstrip() + "\n")


def _table(found: dict[str, Parts]) -> str:
    told = summary(found)
    lines = [
        f"{told[0].upper()}{told[1:]} ({date.today():%d %B %Y}, torch {torch.__version__}).",
        "",
        "| type | class | | |",
        "|---|---|---|---|",
    ]
    for kind, parts in found.items():
        word, told = verdict(parts)
        told = told.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
        lines.append(f"| {kind} | {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]} | {word} | {told} |")
    return "\n".join(lines)


def _short(text: str) -> str:
    """What an error says, without the name of the class and what to do instead."""
    text = text.strip().splitlines()[-1] if text.startswith("Traceback") else " ".join(text.split())
    text = re.sub(r"^\w+ cannot run on a sharded sequence: ", "", text)
    return text if len(text) <= 200 else text[:197] + "..."
