"""Every causal language model of transformers on two processes beside one: what is exact, what is refused, and why.

`python benchmarks/census.py` takes each type of AutoModelForCausalLM as a tiny random model (see `tiny.py`). Compared
are loss, logits and every gradient of a plain batch, of packed documents and of rows that are padded at either side,
and the tokens that greedy decoding gives with a `ShardedCache`. `--only llama gemma2` names some of them, and `--write
docs/supported-models.md` puts the table of the installed version of transformers into that page. It fails where
anything is wrong, or crashes.
"""

from __future__ import annotations

import argparse
import copy
import gc
import logging
import multiprocessing
import sys
import tempfile
import time
import traceback
import warnings
from datetime import timedelta
from multiprocessing.connection import Connection

import census_page
import tiny
import torch
import torch.distributed as dist
import transformers
from census_compare import EXACT, OneProcessError, compare

import ringattn.hf

CP = 2
START = 300.0  # seconds until a process is there
TIMEOUT = 60.0  # and those that one collective may take, half of those that one model may


def examine(kind: str) -> dict[str, tuple[str, str]]:
    """What comes of a type: of the model itself, or of each part, a word and what there is to say about it."""
    try:
        alone = tiny.build(kind)
    except Exception as error:  # noqa: BLE001 - a type that transformers cannot make is one line of the table
        return {"model": ("not built", f"{type(error).__name__}: {error}")}
    sharded = copy.deepcopy(alone)
    try:
        ringattn.hf.parallelize(sharded)
    except ringattn.UnsupportedError as error:
        return {"model": ("refused", str(error))}
    except Exception:  # noqa: BLE001
        return {"model": ("crashes", traceback.format_exc())}
    found: dict[str, tuple[str, str]] = {}
    for part in census_page.PARTS:
        try:
            error = compare(part, alone, sharded)
            found[part] = ("exact", "") if error <= EXACT else ("wrong", f"{error:.1e}")
        except OneProcessError as refusal:
            found[part] = ("n/a", str(refusal))
            if part == "plain":
                return {"model": ("not built", str(refusal))}
        except ringattn.UnsupportedError as refusal:
            found[part] = ("refused", str(refusal))
        except Exception:  # noqa: BLE001
            found[part] = ("crashes", traceback.format_exc())
            break  # the other rank may wait for what never comes
    return found


def work(rank: int, store: str, pipe: Connection) -> None:
    """The life of one of the processes: it examines what it is told to, until it is told nothing more."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    timeout = timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=CP, timeout=timeout)
    pipe.send("ready")
    while kind := pipe.recv():
        pipe.send(examine(kind))
        gc.collect()
    dist.destroy_process_group()


class Pair:
    """Processes that examine one type after another. What crashes one of them ends all: the next gets new ones."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("forkserver")
        # Modules of this folder are on no path that the server knows.
        context.set_forkserver_preload(["torch", "transformers.models.auto.modeling_auto", "ringattn.hf"])
        pipes = [context.Pipe() for _ in range(CP)]
        self.pipes = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=work, args=(rank, f"{self.folder.name}/store", theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process, (_, theirs) in zip(self.processes, pipes, strict=True):
            process.start()
            theirs.close()
        for pipe in self.pipes:
            assert pipe.poll(START), "a process has started"
            pipe.recv()

    def examine(self, kind: str) -> dict[str, tuple[str, str]]:
        """What the ranks say; where they do not agree, the worse of it."""
        for pipe in self.pipes:
            pipe.send(kind)
        deadline = time.monotonic() + 2 * TIMEOUT
        found: dict[str, tuple[str, str]] = {}
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                return {"model": ("crashes", f"rank {rank} was not done after {2 * TIMEOUT:.0f} s")}
            try:
                said = pipe.recv()
            except EOFError:
                return {"model": ("crashes", f"rank {rank} died")}
            for part, result in said.items():
                found[part] = max(found.get(part, result), result, key=lambda each: census_page.SEVERITY[each[0]])
        return found

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()


def census(kinds: tuple[str, ...]) -> dict[str, dict[str, tuple[str, str]]]:
    """What comes of each type; one line is printed as soon as it is known."""
    found, pair = {}, Pair()
    for number, kind in enumerate(kinds, 1):
        start = time.monotonic()
        found[kind] = pair.examine(kind)
        verdict, reason = census_page.verdict(found[kind])
        seconds = time.monotonic() - start
        print(f"{number:3}/{len(kinds)} {kind:26} {verdict:9} {seconds:5.1f} s  {reason}", flush=True)
        if verdict in ("crashes", "wrong"):
            print("\n".join(f"    {part}: {word} {told}" for part, (word, told) in found[kind].items()), flush=True)
            pair.end()
            pair = Pair()
    pair.end()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tiny.TYPES, metavar="TYPE", help="these alone")
    parser.add_argument("--write", metavar="PAGE", help="put the table into this page")
    asked = parser.parse_args()
    start = time.monotonic()
    found = census(tuple(asked.only or tiny.TYPES))
    print(f"transformers {transformers.__version__}: {census_page.summary(found)} in {time.monotonic() - start:.0f} s")
    if asked.write:
        census_page.write(asked.write, found)
    bad = [kind for kind, parts in found.items() if census_page.verdict(parts)[0] in ("wrong", "crashes")]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
