"""The names of ring-flash-attention: modules, signatures, and `import ring_flash_attn` itself (1, 30, 33)."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from ringattn.compat import ring_flash_attn as rfa

PRIVATE = {
    "adapters": ["substitute_hf_flash_attn", "update_ring_flash_attn_params"],
    "adapters.hf_adapter": [
        "DATA_PARAMS",
        "RING_ATTN_SWITCH",
        "check_params",
        "create_ring_flash_attention_forward",
        "flash_attention_forward",
        "substitute_hf_flash_attn",
        "update_ring_flash_attn_params",
        "use_ring_attn",
    ],
    "llama3_flash_attn_varlen": ["llama3_flash_attn_prepare_cu_seqlens"],
    "triton_utils": ["flatten_varlen_lse", "unflatten_varlen_lse"],
    "utils": [
        "AllGatherComm",
        "RingComm",
        "flatten_varlen_lse",
        "get_default_args",
        "unflatten_varlen_lse",
        "update_out_and_lse",
    ],
    "zigzag_ring_flash_attn_varlen": ["get_half_index"],
}
LENGTHS = {
    "ring_flash_attn": [],
    "zigzag_ring_flash_attn": [],
    "stripe_flash_attn": [],
    "ring_flash_attn_varlen": ["cu_seqlens", "max_seqlen"],
    "zigzag_ring_flash_attn_varlen": ["cu_seqlens", "max_seqlen", "half_index0", "half_index1"],
    "llama3_flash_attn_varlen": [
        "cu_seqlens_q",
        "cu_seqlens_k",
        "max_seqlen_q",
        "max_seqlen_k",
        "heads_k_stride",
        "local_k_slice",
    ],
}
TAIL = {"dropout_p": 0, "causal": True, "window_size": (-1, -1), "alibi_slopes": None, "deterministic": False}


@pytest.mark.parametrize("module", PRIVATE)
def test_30_private_import_paths(module: str) -> None:
    """30: what others import from the submodules; where the package exports it too, it is the same."""
    found = importlib.import_module(f"ringattn.compat.ring_flash_attn.{module}")
    for name in PRIVATE[module]:
        assert getattr(found, name) is getattr(rfa, name, getattr(found, name))


@pytest.mark.parametrize("module", LENGTHS)
def test_30_modules_of_the_families(module: str) -> None:
    """30: the three functions, and the two passes below autograd with the parameters that they have there."""
    found = importlib.import_module(f"ringattn.compat.ring_flash_attn.{module}")
    for packing in ("func", "kvpacked_func", "qkvpacked_func"):
        assert getattr(found, f"{module}_{packing}") is getattr(rfa, f"{module}_{packing}")
    saved = {"forward": ["q", "k", "v"], "backward": ["dout", "q", "k", "v", "out", "softmax_lse"]}
    for way, tensors in saved.items():
        parameters = inspect.signature(getattr(found, f"{module}_{way}")).parameters
        assert list(parameters) == ["process_group", *tensors, *LENGTHS[module], "softmax_scale", *TAIL]
        assert {name: parameters[name].default for name in TAIL} == TAIL
        assert parameters["softmax_scale"].default is inspect.Parameter.empty


def alone(program: str) -> None:
    """Run a program in a process that has imported nothing."""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_33_install() -> None:
    """33: `import ring_flash_attn` and its submodules are ours, without transformers or flash_attn; twice is fine."""
    alone("""
import sys
import torch._dynamo  # which imports triton by itself, where there is one
before = set(sys.modules)
from ringattn.compat import install
assert install() and install()
import ring_flash_attn, ring_flash_attn.adapters.hf_adapter as adapter, ring_flash_attn.triton_utils
from ring_flash_attn.zigzag_ring_flash_attn import zigzag_ring_flash_attn_func
from ringattn.compat.ring_flash_attn.adapters import hf_adapter
import ringattn
assert zigzag_ring_flash_attn_func is ringattn.zigzag_ring_flash_attn_func and adapter is hf_adapter
assert not {"transformers", "flash_attn", "triton"} & (set(sys.modules) - before)
""")


def test_install_beside_the_real_one(tmp_path: Path) -> None:
    """Where another package of that name is installed it stays, unless `force` says so; imported or not."""
    (tmp_path / "ring_flash_attn.py").write_text("real = True")
    alone(f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from ringattn.compat import install
assert not install()
from ring_flash_attn import real
assert not install() and install(force=True)
from ring_flash_attn import ring_flash_attn_func
""")
