"""`ring_flash_attn.adapters.hf_adapter` inside transformers, numbered as in SEED_API.md, 7.1 (25 to 29, 31)."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import processes
from adapters.comms import Mute
from adapters.compat import packed
from adapters.hf.models import build
from ringattn.compat import ring_flash_attn
from ringattn.compat.ring_flash_attn.adapters import hf_adapter
from ringattn_comms.communicator import SingleRank

KEYS = "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "local_k_slice"


def test_25_26_models_in_transformers() -> None:
    """25: substituted twice, positionally and by keyword; windows, softcap and sinks right; 26: five parameters."""
    for found in processes.run(2, models_in_transformers, timeout=120):
        assert len(found) == 10
        assert all(error <= 1e-5 for error in found.values()), found


def models_in_transformers() -> dict[str, float]:
    found, group = dict[str, float](), dist.group.WORLD
    cases: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
        ("llama", {}, packed.BORDERS),
        ("mistral", {}, packed.BORDERS),
        # A window that is longer than a rank's share and shorter than the sequence, where the original drops it.
        ("mistral", {"sliding_window": 24}, (0, 40)),
        ("gemma2", {}, packed.BORDERS),
        # Transformers' own gpt-oss does not see that positions restart.
        ("gpt_oss", {}, (0, 40)),
    ]
    for number, (name, settings, borders) in enumerate(cases):
        ring_flash_attn.substitute_hf_flash_attn(group, 1)
        ring_flash_attn.substitute_hf_flash_attn(process_group=group, heads_k_stride=2)
        errors = packed.errors(build(name, **settings).eval(), borders)
        found |= {f"{number} {name} {key}": error for key, error in errors.items()}
    assert tuple(hf_adapter.DATA_PARAMS) == KEYS
    told = ring_flash_attn.llama3_flash_attn_prepare_cu_seqlens(torch.tensor([0, 40]), True, dist.get_rank(), 2)
    assert hf_adapter.DATA_PARAMS["cu_seqlens_k"].tolist() == told[1].tolist()
    assert [hf_adapter.DATA_PARAMS[key] for key in KEYS[2:]] == list(told[2:])
    hf_adapter.DATA_PARAMS.clear()
    with pytest.raises(ValueError, match=r"DATA_PARAMS lacks cu_seqlens_q.*call update_ring_flash_attn_params"):
        packed.errors(build("llama"), update=False)
    return found


def test_25_transformers_that_are_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """25: what is not supported is a ValueError."""
    name = "transformers.modeling_utils"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with pytest.raises(ValueError, match=r"transformers 4.48 or newer is needed"):
        ring_flash_attn.substitute_hf_flash_attn(None, 1)


def test_26_data_params_are_read_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """26: the dictionary is a live view: what others write into it is what the next call goes by."""
    (forward,) = hf_adapter.create_ring_flash_attention_forward(SingleRank(), 1)
    x = torch.randn(1, 6, 2, 4)
    found = []
    for borders in ([0, 6], [0, 2, 6]):
        told = ring_flash_attn.llama3_flash_attn_prepare_cu_seqlens(torch.tensor(borders), True, 0, 1)
        for key, value in zip(KEYS, told, strict=True):
            monkeypatch.setitem(hf_adapter.DATA_PARAMS, key, value)
        found.append(forward(x, x, x))
    torch.testing.assert_close(found[0][:, :2], found[1][:, :2])
    assert not torch.allclose(found[0][:, 2:], found[1][:, 2:])


def test_27_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """27: off, and for modules that are not causal, transformers' own function runs, from the next call on."""
    calls: list[str] = []
    monkeypatch.setitem(hf_adapter._originals, "flash_attention_2", lambda *args, **kwargs: calls.append("original"))
    monkeypatch.setattr(hf_adapter, "flash_attention_forward", lambda *args, **kwargs: calls.append("ours"))
    switched, module = hf_adapter._switched("flash_attention_2"), nn.Module()
    switched(module)
    hf_adapter.use_ring_attn(False)
    switched(module)
    assert hf_adapter.RING_ATTN_SWITCH is False
    hf_adapter.use_ring_attn(True)
    switched(module)
    switched(module, is_causal=False)
    module.is_causal = False  # type: ignore[assignment]
    switched(module)
    assert calls == ["ours", "original", "ours", "original", "original"]


def computed_in(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The dtype of what reaches the kernels for float32 queries and keys with values of another one."""
    seen: list[Tensor] = []
    monkeypatch.setattr(hf_adapter, "_forwards", [lambda q, k, v, *_, **__: seen.extend((q, k, v)) or q])
    x = torch.randn(1, 2, 6, 4)
    out, nothing = hf_adapter.flash_attention_forward(module, x, x, x.bfloat16())
    assert out.dtype == torch.float32 and out.shape == (1, 6, 2, 4) and nothing is None
    (dtype,) = {tensor.dtype for tensor in seen}
    return dtype


def test_28_float32_is_cast_and_cast_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """28: to what autocast says, to the dtype of the weights, or to what quantized weights stand for."""
    module = nn.ModuleDict({"o_proj": nn.Linear(4, 4)})
    assert computed_in(module, monkeypatch) == torch.float32
    assert computed_in(module.half(), monkeypatch) == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert computed_in(module, monkeypatch) == torch.bfloat16
    module["o_proj"].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    module.config = types.SimpleNamespace(dtype=torch.bfloat16)  # type: ignore[assignment]
    assert computed_in(module, monkeypatch) == torch.bfloat16


@pytest.mark.parametrize(
    ("variable", "argument", "expected"),
    [(None, None, False), ("0", None, False), ("1", None, True), ("1", False, False), (None, True, True)],
)
def test_29_deterministic(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, argument: bool | None, expected: bool
) -> None:
    """29: the environment decides where the caller says nothing."""
    name, seen = "FLASH_ATTENTION_DETERMINISTIC", []
    monkeypatch.delenv(name, raising=False) if variable is None else monkeypatch.setenv(name, variable)
    monkeypatch.setattr(hf_adapter, "attention", lambda q, *_, **options: seen.append(options["deterministic"]) or q)
    told = ring_flash_attn.llama3_flash_attn_prepare_cu_seqlens(torch.tensor([0, 6]), True, 0, 1)
    monkeypatch.setattr(hf_adapter, "DATA_PARAMS", dict(zip(KEYS, told, strict=True)))
    (forward,) = hf_adapter.create_ring_flash_attention_forward(SingleRank(), 1)
    x = torch.randn(1, 6, 2, 4)
    forward(x, x, x, None, 6, True, deterministic=argument)
    assert seen == [expected]


def test_31_the_newest_of_several_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """31: what creates the forward may be replaced, and returns a list of one, or one for each generation."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for name in ("flash_attention_2", "flash_attention_3"):
        # pytest puts the present entries back.
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, name, print)
    monkeypatch.setattr(hf_adapter, "_originals", {})
    monkeypatch.setattr(hf_adapter, "_forwards", [])
    given: list[Any] = []

    def create(process_group: Any, heads_k_stride: int) -> list[Any]:
        given.extend((process_group, heads_k_stride))
        return [lambda q: None, lambda q, k, v, *_, **__: 2 * q]

    monkeypatch.setattr(hf_adapter, "create_ring_flash_attention_forward", create)
    hf_adapter.substitute_hf_flash_attn("group", 3)
    x = torch.randn(1, 2, 6, 4)
    out, _ = ALL_ATTENTION_FUNCTIONS["flash_attention_2"](nn.ModuleDict({"o_proj": nn.Linear(4, 4)}), x, x, x)
    assert given == ["group", 3] and torch.equal(out, 2 * x.transpose(1, 2))


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of several rows, and what is not causal: the original's assertions, as a ValueError with a way out."""
    (forward,) = hf_adapter.create_ring_flash_attention_forward(SingleRank(), 1)
    x = torch.randn(2, 6, 2, 4)
    with pytest.raises(ValueError, match=r"one packed row.*got \(2, 6, 2, 4\)"):
        forward(x, x, x)
    for error in (AssertionError, ValueError):
        with pytest.raises(error, match=r"Only causal attention.*another attn_implementation"):
            forward(x[:1], x[:1], x[:1], is_causal=False)
    monkeypatch.setattr(hf_adapter, "_forwards", [])
    with pytest.raises(ValueError, match="call substitute_hf_flash_attn"):
        hf_adapter.flash_attention_forward(nn.ModuleDict({"o_proj": nn.Linear(4, 4)}), x, x, x)


def test_what_one_rank_is_refused_the_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = ring_flash_attn.llama3_flash_attn_prepare_cu_seqlens(torch.tensor([0, 16]), True, 1, 2)
    monkeypatch.setattr(hf_adapter, "DATA_PARAMS", dict(zip(KEYS, told, strict=True)))
    comm, x = Mute(1, 2), torch.randn(1, 7, 2, 4)
    (forward,) = hf_adapter.create_ring_flash_attention_forward(comm, 1)
    with pytest.raises(ValueError, match="do not describe the tokens 7 to 14 that rank 1 of 2 holds"):
        forward(x, x, x)
    (header,) = comm.said
    assert header.action == "refusal" and "do not describe the tokens 7 to 14" in header.refused


def test_30_check_params() -> None:
    assert hf_adapter.check_params(lambda a, b: None, lambda c, d: None)
    assert not hf_adapter.check_params(lambda a, b: None, lambda c: None)
