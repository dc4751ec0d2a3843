"""What a kernel takes, as data: each limit is checked, and the sentence names what was given and what is taken."""

from __future__ import annotations

import doctest
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from ringattn_core.kernels import limits as module
from ringattn_core.kernels.limits import Limits
from ringattn_core.run.kernel import Options

ON_CPU = Limits(generation=None, dtypes=(torch.float32,))
PLAIN = Options(1.0)


def why(limits: Limits, dims: tuple[int, int] = (64, 64), options: Options = PLAIN, dtype=torch.float32) -> str | None:
    q, v = (torch.empty(4, 2, dim, dtype=dtype) for dim in dims)
    return limits.why_unsupported(q, v, options)


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(module).attempted >= 5
    assert not doctest.testmod(module).failed


@pytest.mark.parametrize(
    ("limits", "taken", "refused", "words"),
    [
        (ON_CPU, [(8, 8), (256, 256)], [(264, 264), (12, 12), (64, 32)], "one head dim .*, a multiple of 8 up to 256,"),
        (
            replace(ON_CPU, one_dim=False, longest_dim=128),
            [(64, 32), (128, 128)],
            [(136, 64), (64, 136), (64, 12), (12, 64)],
            "head dims for keys and for values, multiples of 8 up to 128,",
        ),
        (
            replace(ON_CPU, longest_dim=128, other_dims=((192, 128), (256, 256))),
            [(128, 128), (192, 128), (256, 256)],
            [(192, 192), (128, 192)],
            "one head dim .*, or 192/128, or 256/256,",
        ),
        (replace(ON_CPU, longest_dim=None), [(7, 7), (999, 999)], [(8, 16)], "one head dim for keys and values,"),
    ],
)
def test_head_dims(limits: Limits, taken: list[tuple[int, int]], refused: list[tuple[int, int]], words: str) -> None:
    for dims in taken:
        assert why(limits, dims) is None
    for dims in refused:
        assert re.fullmatch(rf"it takes {words} not {dims[0]}/{dims[1]}", why(limits, dims) or "")


@pytest.mark.parametrize(
    ("lacks", "changes"),
    [
        ("softcap", {"softcap": 1.0}),
        ("ALiBi", {"alibi_slopes": torch.ones(2)}),
        ("dropout", {"dropout_p": 0.1}),
        ("deterministic backward", {"deterministic": True}),
    ],
)
def test_options(lacks: str, changes: dict[str, Any]) -> None:
    options = PLAIN._replace(**changes)
    assert why(ON_CPU, options=options) is None
    assert why(replace(ON_CPU, lacks=(lacks,)), options=PLAIN) is None
    assert why(replace(ON_CPU, lacks=(lacks,)), options=options) == f"it has no {lacks}"


@pytest.mark.parametrize("major", [7, 8, 9, 10])
@pytest.mark.parametrize("or_newer", [True, False])
@pytest.mark.parametrize(("generation", "wanted"), [("Ampere", 8), ("Hopper", 9)])
def test_generations(monkeypatch, generation, wanted: int, or_newer: bool, major: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, 0))
    limits = Limits(generation=generation, or_newer=or_newer)
    found = limits._device(torch.device("cuda"))
    assert (found is None) == (major == wanted or (or_newer and major > wanted))
    assert found is None or (f"{generation} generation" in found and ("newer" in found) == or_newer)
    assert "NVIDIA GPU" in (limits._device(torch.device("cpu")) or "")


def test_dtypes() -> None:
    assert why(ON_CPU, dtype=torch.float64) == "it takes float32, not torch.float64"
    narrow = replace(ON_CPU, dtypes=(torch.bfloat16, torch.float16))
    assert why(narrow) == "it takes bfloat16 and float16, not torch.float32"
    assert why(narrow, dtype=torch.float16) is None
