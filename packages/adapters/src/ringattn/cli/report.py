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

from ringattn import check
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
    """Run both passes of small problems on one rank, and compare them with dense attention in float64."""
    column = check.Column(name, device, dtype)
    if refusal := column.refusal:
        # What is behind the colon says why; what comes after it, what to choose instead.
        reason = refusal.splitlines()[0].partition("cannot compute this: ")[2] or refusal
        return name, False, reason.partition(". Choose")[0]
    found = check.compare(1, "contiguous", "ring", [check.Solved(problem, column) for problem in check.PROBLEMS])
    if found is None:
        return name, False, "it refuses all of the problems that it is tried with"
    return (
        name,
        found.exact,
        f"its largest error is {found.error:.2g} of the limit" if found.exact else f"WRONG: {found.about}",
    )


def _backends(gpus: list[torch.device]) -> Iterator[Row]:
    yield "threads", True, "ranks as threads of one process, for learning and testing"
    yield "gloo", dist.is_gloo_available(), "between processes on CPUs" if dist.is_gloo_available() else _NOT_BUILT
    built = "between GPUs" if gpus else "no GPU here"
    yield "nccl", bool(gpus) and dist.is_nccl_available(), built if dist.is_nccl_available() else _NOT_BUILT
    pairs = [(one, other) for one in gpus for other in gpus if one != other]
    reached = sum(torch.cuda.can_device_access_peer(one, other) for one, other in pairs)
    note = f"{reached} of {len(pairs)} pairs of GPUs address each other's memory" if pairs else "fewer than two GPUs"
    yield "peer access", bool(pairs) and reached == len(pairs), note
