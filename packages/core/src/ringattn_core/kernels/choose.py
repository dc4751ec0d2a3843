"""Which kernel computes a schedule: the one that was named, or the first that can do all of it."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from pkgutil import resolve_name
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ringattn_core.errors import UnsupportedError, lookup
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.kernel import Kernel, Options
from ringattn_core.run.transport import KV

# FlashAttention 4 and 3 are for Hopper and newer. cuDNN reaches 1.8 times the speed of FlashAttention-2 on an H200,
# forward and backward. FlashAttention-2 is the same kernel in PyTorch as in its package; the package comes last of the
# fast ones, because it is needed only for the options that PyTorch's lacks, and a call takes more Python.
KERNELS: dict[str, str] = {
    "flash_attn_4": "ringattn_core.kernels.flash_attn_4:FlashAttn4",
    "flash_attn_3": "ringattn_core.kernels.flash_attn_3:FlashAttn3",
    "cudnn": "ringattn_core.kernels.cudnn:CuDnn",
    "torch_flash": "ringattn_core.kernels.torch_flash:TorchFlash",
    "flash_attn_2": "ringattn_core.kernels.flash_attn_2:FlashAttn2",
    "reference": "ringattn_core.kernels.reference:Reference",
}
"""The import path of each kernel's class, by name and in order of preference; `reference` can do everything.

A kernel's module is imported when the kernel is first considered. ImportError, from the import or from the class, says
that its library is not installed.
"""


def choose(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    schedule: Schedule,
    options: Options,
    name: str | None = None,
    *,
    lse_gradient: bool = False,
) -> Kernel:
    """The kernel for a schedule on tensors of these shapes, dtypes and device; looked up after the first time.

    Without a name it is the first of `KERNELS` that supports every launch. `lse_gradient`: backward will get a gradient
    of lse, which kernels that derive delta themselves cannot use. Raises UnsupportedError if the named kernel cannot
    do it, saying why and naming one that can, and ValueError if there is no kernel of that name.
    """
    known, key = _CHOSEN.setdefault(schedule, {}), question(q, k, v, options, name, lse_gradient)
    kernel = known.get(key)
    if kernel is None:
        kernel = known[key] = _choose(q, k, v, schedule, options, name, lse_gradient)
    return kernel


_CHOSEN: WeakKeyDictionary[Schedule, dict[Hashable, Kernel]] = WeakKeyDictionary()


def question(q: Tensor, k: Tensor, v: Tensor, options: Options, name: str | None, lse_gradient: bool) -> Hashable:
    """Everything besides the schedule that a choice depends on."""
    return (
        *(q.device, q.dtype, k.dtype, v.dtype, q.shape[1:], k.shape[1:], v.shape[1:]),
        *(options.softcap, None if options.alibi_slopes is None else options.alibi_slopes.dim()),
        *(options.dropout_p, options.deterministic, torch.are_deterministic_algorithms_enabled(), name, lse_gradient),
    )


def refusal(
    name: str, q: Tensor, k: Tensor, v: Tensor, schedule: Schedule, options: Options, *, lse_gradient: bool = False
) -> str | None:
    """Why the kernel of that name cannot compute a schedule on such tensors; None if it can. The rest as `choose`."""
    try:
        kernel = kernel_named(name)
    except ImportError as error:
        return f"it cannot be imported: {error}"
    if lse_gradient and not kernel.accepts_delta:
        return "it has no gradient of lse"
    kv, launches = KV(k, v), (launch for step in schedule.steps for launch in step.launches)
    return next((why for launch in launches if (why := kernel.supports(launch, q, kv, options))), None)


def kernel_named(name: str) -> Kernel:
    """The kernel of that name. Raises ValueError if there is none, and ImportError if its library is missing."""
    return _kernel(lookup(name, KERNELS, "kernel"))


@cache
def installed() -> tuple[str, ...]:
    """The names of the kernels whose libraries are installed."""
    return tuple(name for name, path in KERNELS.items() if _importable(path))


def _importable(path: str) -> bool:
    try:
        _kernel(path)
    except ImportError:
        return False
    return True


@cache
def _kernel(path: str) -> Kernel:
    """The kernel whose class has this import path, made once. Raises ImportError without its library."""
    kernel: Kernel = resolve_name(path)()
    return kernel


def _choose(
    q: Tensor, k: Tensor, v: Tensor, schedule: Schedule, options: Options, name: str | None, lse_gradient: bool
) -> Kernel:
    def why_not(name: str) -> str | None:
        return refusal(name, q, k, v, schedule, options, lse_gradient=lse_gradient)

    able = (other for other in KERNELS if why_not(other) is None)
    if name is not None and (why := why_not(name)) is not None:
        raise UnsupportedError(
            f"The kernel {name!r} cannot compute this: {why}. Choose {next(able)!r}, or no name at all."
        )
    return _kernel(KERNELS[name or next(able)])
