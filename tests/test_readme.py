"""What the README shows: its picture, its programs and its tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ringattn_core import draw, plan_all, ring, zigzag

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NATIVE, HUGGING_FACE = re.findall(r"(?ms)^```python\n(.*?)^```", README)

CHECK = """
dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
torch.testing.assert_close(whole, dense.transpose(1, 2))
"""

PROCESSES = """
import torch.distributed as dist
from ringattn import zigzag_ring_flash_attn_func

dist.init_process_group("gloo")
torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 64, 4, 16)
cp = ringattn.ContextParallel(layout="zigzag")
whole = cp.unshard(ringattn.attention(*cp.shard(q, k, v), cp=cp, causal=True))
"""

DROP_IN = """
whole = cp.unshard(zigzag_ring_flash_attn_func(*cp.shard(q, k, v), causal=True))
"""

MODEL = """
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

dist.init_process_group("gloo")
torch.manual_seed(0)
sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
ids = torch.randint(99, (1, 37))
alone = model(input_ids=ids, labels=ids).loss
"""


def torchrun(program: str, folder: Path) -> None:
    """Run a program on two processes of this machine."""
    script = folder / "program.py"
    script.write_text(program + "\ndist.destroy_process_group()\n", encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr


def test_the_picture_is_what_the_library_draws() -> None:
    schedules = plan_all(zigzag, ring, (0, 16), 4, window=(-1, 0))
    assert f"```text\n{draw.mask(schedules)}\n```" in README


def test_the_program_computes_dense_attention(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(NATIVE + CHECK, names)
    assert float(capsys.readouterr().out.rpartition("by ")[2]) < 1e-5


def test_processes_compute_the_same_by_either_name(tmp_path: Path) -> None:
    torchrun("import torch\nimport ringattn\n" + PROCESSES + CHECK + DROP_IN + CHECK, tmp_path)


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_a_parallelized_model_has_the_same_loss(tmp_path: Path) -> None:
    torchrun(
        MODEL
        + HUGGING_FACE
        + "loss = model(input_ids=ids, labels=ids).loss\ntorch.testing.assert_close(loss, alone)\n",
        tmp_path,
    )


def test_what_the_readme_names_exists() -> None:
    named = re.findall(r"`((?:tests|packages)/[\w/.]+)`", README) + re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert named and not [name for name in named if not (ROOT / name).exists()]


def test_its_number_of_models_is_the_census() -> None:
    (number,) = re.findall(r"\[(\d+) model types\]\(docs/supported-models\.md\)", README)
    assert f" {number} exact," in (ROOT / "docs/supported-models.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 120
