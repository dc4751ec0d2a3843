"""The types of the public functions, which mypy compares with `assert_type`; the same calls run, and return them."""

from __future__ import annotations

import inspect
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import assert_type

import pytest
import torch
from torch import Tensor

import ringattn
from ringattn import ContextParallel, attention
from ringattn.compat import ring_flash_attn
from ringattn.compat.ring_flash_attn.llama3_flash_attn_varlen import llama3_flash_attn_varlen_forward
from ringattn.compat.ring_flash_attn.zigzag_ring_flash_attn import zigzag_ring_flash_attn_backward
from ringattn_comms.communicator import SingleRank

ROOT = Path(__file__).parents[2]
ALONE = SingleRank()
Q, KV = torch.zeros(1, 4, 2, 8), torch.zeros(1, 4, 2, 2, 8)
BORDERS = torch.tensor([0, 4], dtype=torch.int32)
WITH_LSE = tuple[Tensor, Tensor, None]


def probably() -> bool:
    """A bool of which a type checker does not know which."""
    return bool(Q.numel())


def test_attention() -> None:
    cp = ContextParallel(ALONE)
    assert isinstance(assert_type(attention(Q, Q, Q, cp=cp, causal=True), Tensor), Tensor)
    out, lse = assert_type(attention(Q, Q, Q, return_lse=True, window_size=(3, 0)), tuple[Tensor, Tensor])
    assert out.shape == Q.shape and lse.shape == (1, 2, 4)
    either = assert_type(attention(Q, Q, Q, return_lse=probably()), Tensor | tuple[Tensor, Tensor])
    assert isinstance(either, tuple)


def test_shard_and_unshard() -> None:
    cp = ContextParallel(ALONE)
    assert assert_type(cp.shard(Q), Tensor).dim() == 4
    assert len(assert_type(cp.shard(Q, Q, dim=1), tuple[Tensor, ...])) == 2
    assert assert_type(cp.unshard(Q), Tensor).shape == Q.shape
    assert len(assert_type(cp.unshard(Q, Q, Q), tuple[Tensor, ...])) == 3


def test_functions_of_a_batch() -> None:
    assert assert_type(ringattn.ring_flash_attn_func(Q, Q, Q, 0.0, None, True, group=ALONE), Tensor).shape == Q.shape
    assert_type(ringattn.zigzag_ring_flash_attn_kvpacked_func(Q, KV, return_attn_probs=False, group=ALONE), Tensor)
    qkv = torch.stack([Q, Q, Q], dim=2)
    found = assert_type(ringattn.stripe_flash_attn_qkvpacked_func(qkv, return_attn_probs=True, group=ALONE), WITH_LSE)
    assert found[2] is None
    either = ring_flash_attn.ring_flash_attn_func(Q, Q, Q, return_attn_probs=probably(), group=ALONE)
    assert len(assert_type(either, Tensor | WITH_LSE)) == 3


def test_functions_of_packed_sequences() -> None:
    q = Q[0]
    assert_type(ringattn.stripe_flash_attn_varlen_func(q, q, q, BORDERS, 4, group=ALONE), Tensor)
    assert_type(ringattn.zigzag_llama3_flash_attn_varlen_func(q, q, q, BORDERS, 4, 1, group=ALONE), Tensor)
    found = ringattn.llama3_flash_attn_prepare_cu_seqlens(BORDERS, True, 0, 1)
    *lengths, keys = assert_type(found, "tuple[Tensor, Tensor, int, int, slice[int, int, int]]")
    told = found[0], found[1], found[2], found[3], 1, keys
    assert_type(ringattn.llama3_flash_attn_varlen_kvpacked_func(q, KV[0], *told, group=ALONE), Tensor)
    out, lse = assert_type(llama3_flash_attn_varlen_forward(ALONE, q, q, q, *told, 0.5), tuple[Tensor, Tensor])
    assert out.shape == q.shape and lse.shape == (2, 4) and len(lengths) == 4
    saved = Q, Q, Q, Q, Q, torch.zeros(1, 2, 4)
    grads = zigzag_ring_flash_attn_backward(ALONE, *saved, None)
    assert len(assert_type(grads, tuple[Tensor, Tensor, Tensor])) == 3


def stubs() -> dict[Path, str]:
    """What `dev/write_stubs.py` would write."""
    spec = spec_from_file_location("write_stubs", ROOT / "dev/write_stubs.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[Path, str] = module.stubs()
    return found


def test_the_stubs_are_what_is_written_from_the_functions() -> None:
    written = stubs()
    assert {path for path in written if path.exists()} == {*ROOT.glob("packages/*/src/**/*.pyi")}
    for path, text in written.items():
        old = path.read_text(encoding="utf-8")
        assert old == text, f"{path.relative_to(ROOT)} is out of date: python dev/write_stubs.py"


@pytest.mark.parametrize("name", [name for name in ringattn.__all__ if name.endswith("_func")])
def test_every_function_has_a_docstring_that_names_its_arguments(name: str) -> None:
    function = getattr(ringattn, name)
    assert function.__name__ == function.__qualname__ == name and function.__module__ == "ringattn"
    documented = {word for line in re.findall(r"((?:\w+, )*\w+):", function.__doc__) for word in line.split(", ")}
    assert {*inspect.signature(function).parameters} <= documented


def test_arguments_that_do_not_fit_are_refused_by_name() -> None:
    function = ringattn.ring_flash_attn_func
    with pytest.raises(TypeError, match=r"ring_flash_attn_func\(\): missing a required argument: 'k'"):
        function(Q)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="missing a required argument: 'v'"):
        function(Q, Q, V=Q)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'casual'"):
        function(Q, Q, Q, casual=True)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="multiple values for argument 'k'"):
        function(Q, Q, Q, k=Q)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="too many positional arguments"):
        function(Q, Q, Q, 0.0, None, True, (-1, -1), None, False, False, None, 1)  # type: ignore[call-overload]
