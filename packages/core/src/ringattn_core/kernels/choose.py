"""Which kernel computes a schedule: the one that was named, or the first that can do all of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from weakref import WeakKeyDictionary

from torch import Tensor

from ringattn_core.errors import UnsupportedError, lookup
from ringattn_core.kernel import Kernel, Options
from ringattn_core.schedule import Schedule


@cache
def _torch_flash() -> Kernel:
    from ringattn_core.kernels.by_device import TorchFlash

    return TorchFlash()


@cache
def _flash_attn_4() -> Kernel:
    from ringattn_core.kernels.flash_attn_4 import FlashAttn4

    return FlashAttn4()


@cache
def _cudnn() -> Kernel:
    from ringattn_core.kernels.cudnn import CuDnn

    return CuDnn()


@cache
def _reference() -> Kernel:
    from ringattn_core.kernels.reference import Reference

    return Reference()


KERNELS: dict[str, Callable[[], Kernel]] = {
    "flash_attn_4": _flash_attn_4,
    "cudnn": _cudnn,
    "torch_flash": _torch_flash,
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
    known = _CHOSEN.setdefault(schedule, {})
    key = (
        *(q.device, q.dtype, k.dtype, v.dtype, q.shape[1:], k.shape[1:], v.shape[1:]),
        *(options.softcap, None if options.alibi_slopes is None else options.alibi_slopes.shape[:-1]),
        *(options.dropout_p, options.deterministic, name, lse_gradient),
    )
    kernel = known.get(key)
    if kernel is None:
        kernel = known[key] = _choose(q, k, v, schedule, options, name, lse_gradient)
    return kernel


_CHOSEN: WeakKeyDictionary[Schedule, dict[Hashable, Kernel]] = WeakKeyDictionary()


def _choose(
    q: Tensor, k: Tensor, v: Tensor, schedule: Schedule, options: Options, name: str | None, lse_gradient: bool
) -> Kernel:
    def refusal(name: str) -> str | None:
        try:
            kernel = KERNELS[name]()
        except ImportError as error:
            return f"it cannot be imported: {error}"
        if lse_gradient and not kernel.takes_delta:
            return "it has no gradient of lse"
        launches = (launch for step in schedule.steps for launch in step.launches)
        return next((why for launch in launches if (why := kernel.supports(launch, q, k, v, options))), None)

    if name is None:
        name = next((name for name in KERNELS if refusal(name) is None), "reference")
    make = lookup(name, KERNELS, "kernel")
    if (why := refusal(name)) is not None:
        able = next(other for other in KERNELS if refusal(other) is None)
        raise UnsupportedError(f"The kernel {name!r} cannot compute this: {why}. Choose {able!r}, or no name at all.")
    return make()
