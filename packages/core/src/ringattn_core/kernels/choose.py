"""Which kernel computes a schedule: the one that was named, or the first that can do all of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ringattn_core.errors import UnsupportedError, lookup
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.kernel import Kernel, Options


@cache
def _torch_flash() -> Kernel:
    from ringattn_core.kernels.torch_flash import TorchFlash

    return TorchFlash()


@cache
def _flash_attn_4() -> Kernel:
    from ringattn_core.kernels.flash_attn_4 import FlashAttn4

    return FlashAttn4()


@cache
def _flash_attn_3() -> Kernel:
    from ringattn_core.kernels.flash_attn_3 import FlashAttn3

    return FlashAttn3()


@cache
def _cudnn() -> Kernel:
    from ringattn_core.kernels.cudnn import CuDnn

    return CuDnn()


@cache
def _flash_attn_2() -> Kernel:
    from ringattn_core.kernels.flash_attn_2 import FlashAttn2

    return FlashAttn2()


@cache
def _reference() -> Kernel:
    from ringattn_core.kernels.reference import Reference

    return Reference()


# FlashAttention 4 and 3 were made for Hopper and newer. cuDNN reaches 1.8 times the speed of FlashAttention-2 on an
# H200, forward and backward. That one is the same kernel in PyTorch as in its package, which comes last of the fast
# ones: it is for what PyTorch's lacks, and goes through more Python.
KERNELS: dict[str, Callable[[], Kernel]] = {
    "flash_attn_4": _flash_attn_4,
    "flash_attn_3": _flash_attn_3,
    "cudnn": _cudnn,
    "torch_flash": _torch_flash,
    "flash_attn_2": _flash_attn_2,
    "reference": _reference,
}
"""What makes each kernel, by name and in order of preference: `reference`, which can do everything, comes last.

A kernel's module is imported when the kernel is first considered; ImportError says that its library is not here.
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
    """The kernel for a schedule on tensors of these shapes, dtypes and device; found once, then looked up.

    Without a name it is the first of `KERNELS` that supports every launch. `lse_gradient`: will a gradient of lse come
    in? Kernels that derive delta themselves have no place for it. Raises UnsupportedError if the named kernel cannot
    do it, saying why and naming one that can, and ValueError if there is no kernel of that name.
    """
    known, key = _CHOSEN.setdefault(schedule, {}), question(q, k, v, options, name, lse_gradient)
    kernel = known.get(key)
    if kernel is None:
        kernel = known[key] = _choose(q, k, v, schedule, options, name, lse_gradient)
    return kernel


_CHOSEN: WeakKeyDictionary[Schedule, dict[Hashable, Kernel]] = WeakKeyDictionary()


def question(q: Tensor, k: Tensor, v: Tensor, options: Options, name: str | None, lse_gradient: bool) -> Hashable:
    """All that a choice depends on beside the schedule."""
    return (
        *(q.device, q.dtype, k.dtype, v.dtype, q.shape[1:], k.shape[1:], v.shape[1:]),
        *(options.softcap, None if options.alibi_slopes is None else options.alibi_slopes.dim()),
        *(options.dropout_p, options.deterministic, torch.are_deterministic_algorithms_enabled(), name, lse_gradient),
    )


def refusal(
    name: str, q: Tensor, k: Tensor, v: Tensor, schedule: Schedule, options: Options, *, lse_gradient: bool = False
) -> str | None:
    """Why the kernel of that name cannot compute a schedule on such tensors; None if it can. The rest as `choose`."""
    make = lookup(name, KERNELS, "kernel")
    try:
        kernel = make()
    except ImportError as error:
        return f"it cannot be imported: {error}"
    if lse_gradient and not kernel.accepts_delta:
        return "it has no gradient of lse"
    launches = (launch for step in schedule.steps for launch in step.launches)
    return next((why for launch in launches if (why := kernel.supports(launch, q, k, v, options))), None)


@cache
def installed() -> tuple[str, ...]:
    """The names of the kernels whose libraries are here."""

    def here(make: Callable[[], Kernel]) -> bool:
        try:
            make()
        except ImportError:
            return False
        return True

    return tuple(name for name, make in KERNELS.items() if here(make))


def looks_at_launches(name: str, device: torch.device) -> bool:
    """Can a kernel refuse the launches of one rank and compute those of another, on tensors that are alike?"""
    return name in ("cudnn", "flash_attn_3") or (name == "torch_flash" and device.type == "cpu")


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
    return KERNELS[name or next(able)]()
