"""What `ringattn doctor` finds out: what is installed, which kernels and backends work here, and why others do not."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ringattn import ContextParallel, attention
from ringattn_comms.communicator import SingleRank
from ringattn_core.kernels.choose import KERNELS

_PACKAGES = (
    "ringattn",
    "ringattn-comms",
    "ringattn-core",
    "torch",
    "transformers",
    "accelerate",
    "trl",
    "peft",
    "flash-attn",
    "flash-attn-4",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "triton",
)
_NOT_BUILT = "this PyTorch was built without it"


def report(console: Console) -> None:
    """Print a table of each, with a reason where something does not work."""
    devices = [torch.device("cpu")] + [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    console.print(_table("Versions", [("python", True, platform.python_version()), *_versions()]))
    console.print(_table("Devices", [_device(device) for device in devices]))
    for device in devices[:2]:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        console.print(_table(f"Kernels on {device}, {dtype}", [_kernel(name, device, dtype) for name in KERNELS]))
    console.print(_table("Communication", list(_backends(devices[1:]))))


Row = tuple[str, bool, str]  # what, does it work, and a word on it


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2))
    for name, works, note in rows:
        table.add_row(Text("✓" if works else "–", style="green" if works else "yellow"), name, Text(note, style="dim"))
    return table


def _versions() -> Iterator[Row]:
    for package in _PACKAGES:
        try:
            yield package, True, version(package)
        except PackageNotFoundError:
            yield package, False, "not installed"


def _device(device: torch.device) -> Row:
    if device.type == "cpu":
        return "cpu", True, f"{platform.machine()}, {torch.get_num_threads()} threads"
    properties = torch.cuda.get_device_properties(device)
    return str(device), True, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _kernel(name: str, device: torch.device, dtype: torch.dtype) -> Row:
    """Run both passes of a small causal attention, and compare them with the reference."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 256, heads, 64, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    try:
        found, expected = (_passes(q, k, v, kernel) for kernel in (name, "reference"))
    except (ImportError, RuntimeError, ValueError) as error:
        # What is behind the colon says why; what comes after it, what to choose instead.
        reason = str(error).splitlines()[0].partition("cannot compute this: ")[2] or str(error)
        return name, False, reason.partition(". Choose")[0]
    worst = max((x - y).abs().max().item() for x, y in zip(found, expected, strict=True))
    return name, True, f"differs from the reference by {worst:.1g} at most"


def _passes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kernel: str) -> list[torch.Tensor]:
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attention(*inputs, cp=ContextParallel(SingleRank(), kernel=kernel), causal=True)
    torch.autograd.backward(out.float().square().sum())
    return [out.detach().float(), *(x.grad.float() for x in inputs if x.grad is not None)]


def _backends(gpus: list[torch.device]) -> Iterator[Row]:
    yield "threads", True, "ranks as threads of one process, for learning and testing"
    yield "gloo", dist.is_gloo_available(), "between processes on CPUs" if dist.is_gloo_available() else _NOT_BUILT
    built = "between GPUs" if gpus else "no GPU here"
    yield "nccl", bool(gpus) and dist.is_nccl_available(), built if dist.is_nccl_available() else _NOT_BUILT
    pairs = [(one, other) for one in gpus for other in gpus if one != other]
    reached = sum(torch.cuda.can_device_access_peer(one, other) for one, other in pairs)
    note = f"{reached} of {len(pairs)} pairs of GPUs address each other's memory" if pairs else "fewer than two GPUs"
    yield "peer access", bool(pairs) and reached == len(pairs), note
