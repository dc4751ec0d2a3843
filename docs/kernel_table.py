"""Which kernels can compute what, asked of each kernel's `supports`: `hatch run python docs/kernel_table.py`.

It writes the tables on the page concepts/kernels.md, and a test keeps them current. No GPU and none of the packages is
needed: tensors are stand-ins that have a device, a dtype and a shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch

from ringattn_core import plan_all, waves, zigzag
from ringattn_core.kernels.choose import KERNELS
from ringattn_core.run.kernel import Options
from ringattn_core.run.transport import KV

PAGE = Path(__file__).parent / "concepts/kernels.md"
TABLES = re.compile(r"(?s)(% Tables made by docs/kernel_table\.py begin here\.\n).*(% They end here\.\n)")
DEVICES = {
    "CPU": None,
    "NVIDIA before Ampere (7.x)": 7,
    "Ampere, Ada (8.x)": 8,
    "Hopper (9.x)": 9,
    "Blackwell (10.x and newer)": 10,
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Asked(NamedTuple):
    """What attention is asked for, on four ranks in zigzag."""

    name: str
    cu_seqlens: tuple[int, ...] = (0, 1024)
    window: tuple[int, int] = (-1, 0)
    dims: tuple[int, int] = (128, 128)
    options: Options = Options(softmax_scale=1.0)


PLAIN = Asked("causal, head dim 128")
OTHERS = (
    PLAIN,
    Asked("no mask", window=(-1, -1)),
    Asked("window", window=(127, 0)),
    Asked("packed documents", cu_seqlens=(0, 300, 1024)),
    Asked("head dim 256", dims=(256, 256)),
    Asked("head dims 192 and 128", dims=(192, 128)),
    Asked("softcap", options=Options(softmax_scale=1.0, softcap=30.0)),
    Asked("dropout", options=Options(softmax_scale=1.0, dropout_p=0.1)),
    Asked("ALiBi", options=Options(softmax_scale=1.0, alibi_slopes=torch.ones(2))),
    Asked("deterministic gradients", options=Options(softmax_scale=1.0, deterministic=True)),
)


def able(asked: Asked, major: int | None, dtype: torch.dtype) -> list[str]:
    """The kernels that can compute all launches of all ranks, in the order in which they are considered."""
    device = torch.device("cpu") if major is None else torch.device("cuda", 0)
    q, k, v = (SimpleNamespace(device=device, dtype=dtype, shape=(256, 2, dim)) for dim in (asked.dims[0], *asked.dims))
    schedules = plan_all(zigzag, waves(2), asked.cu_seqlens, 4, window=asked.window)
    launches = [launch for schedule in schedules for step in schedule.steps for launch in step.launches]
    with mock.patch("torch.cuda.get_device_capability", lambda _: (major, 0)):
        # A stand-in has all that `supports` looks at.
        calls: Any = [(launch, q, KV(k, v), asked.options) for launch in launches]  # type: ignore[arg-type]
        return [name for name in KERNELS if all(_made(name).supports(*call) is None for call in calls)]


def _made(name: str) -> Any:
    """A kernel whose package need not be installed; of FlashAttention 3 a build that lacks nothing."""
    kind = resolve_name(KERNELS[name])
    if name in ("flash_attn_2", "flash_attn_3", "flash_attn_4"):
        kernel = object.__new__(kind)
        kernel._package = SimpleNamespace(lacks=lambda *_: None)
        return kernel
    return kind()


def named(kernels: list[str]) -> str:
    """The fast ones; `reference` can do everything, so it is named where nothing else can."""
    return ", ".join(f"`{name}`" for name in kernels if name != "reference") or "`reference`"


def tables() -> Iterator[str]:
    """The lines of both tables."""
    yield from ("", f"{PLAIN.name[0].upper()}{PLAIN.name[1:]}, by device and dtype:", "")
    yield f"| device | {' | '.join(str(dtype).removeprefix('torch.') for dtype in DTYPES)} |"
    yield "|" + "---|" * (1 + len(DTYPES))
    for device, major in DEVICES.items():
        yield f"| {device} | {' | '.join(named(able(PLAIN, major, dtype)) for dtype in DTYPES)} |"
    yield from ("", "In bfloat16, by what is asked for:", "")
    yield "| | CPU | Ampere, Ada | Hopper | Blackwell |"
    yield "|---|---|---|---|---|"
    for asked in OTHERS:
        cells = (named(able(asked, major, torch.bfloat16)) for major in (None, 8, 9, 10))
        yield f"| {asked.name} | {' | '.join(cells)} |"
    yield ""


def page(text: str) -> str:
    """The page with its tables as they are now."""
    return TABLES.sub(lambda found: found[1] + "\n".join(tables()) + "\n" + found[2], text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
