"""Exact attention over sequences that are sharded across devices: the functions that users call.

The native API is `ContextParallel` and `attention`; the functions of ring-flash-attention are there by their own names.
Each name is imported when it is first used, so that what plans and draws in a terminal starts without PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringattn.context_parallel import ContextParallel
    from ringattn.functions import (
        llama3_flash_attn_varlen_func,
        llama3_flash_attn_varlen_kvpacked_func,
        llama3_flash_attn_varlen_qkvpacked_func,
        ring_flash_attn_func,
        ring_flash_attn_kvpacked_func,
        ring_flash_attn_qkvpacked_func,
        ring_flash_attn_varlen_func,
        ring_flash_attn_varlen_kvpacked_func,
        ring_flash_attn_varlen_qkvpacked_func,
        stripe_flash_attn_func,
        stripe_flash_attn_kvpacked_func,
        stripe_flash_attn_qkvpacked_func,
        stripe_flash_attn_varlen_func,
        stripe_flash_attn_varlen_kvpacked_func,
        stripe_flash_attn_varlen_qkvpacked_func,
        zigzag_llama3_flash_attn_varlen_func,
        zigzag_llama3_flash_attn_varlen_kvpacked_func,
        zigzag_llama3_flash_attn_varlen_qkvpacked_func,
        zigzag_ring_flash_attn_func,
        zigzag_ring_flash_attn_kvpacked_func,
        zigzag_ring_flash_attn_qkvpacked_func,
        zigzag_ring_flash_attn_varlen_func,
        zigzag_ring_flash_attn_varlen_kvpacked_func,
        zigzag_ring_flash_attn_varlen_qkvpacked_func,
    )
    from ringattn.llama3 import llama3_flash_attn_prepare_cu_seqlens
    from ringattn.native import attention
    from ringattn.version import __version__ as __version__
    from ringattn_comms.backends.threads import run
    from ringattn_core.errors import UnsupportedError

__all__ = [
    "ContextParallel",
    "UnsupportedError",
    "attention",
    "llama3_flash_attn_prepare_cu_seqlens",
    "llama3_flash_attn_varlen_func",
    "llama3_flash_attn_varlen_kvpacked_func",
    "llama3_flash_attn_varlen_qkvpacked_func",
    "ring_flash_attn_func",
    "ring_flash_attn_kvpacked_func",
    "ring_flash_attn_qkvpacked_func",
    "ring_flash_attn_varlen_func",
    "ring_flash_attn_varlen_kvpacked_func",
    "ring_flash_attn_varlen_qkvpacked_func",
    "run",
    "stripe_flash_attn_func",
    "stripe_flash_attn_kvpacked_func",
    "stripe_flash_attn_qkvpacked_func",
    "stripe_flash_attn_varlen_func",
    "stripe_flash_attn_varlen_kvpacked_func",
    "stripe_flash_attn_varlen_qkvpacked_func",
    "zigzag_llama3_flash_attn_varlen_func",
    "zigzag_llama3_flash_attn_varlen_kvpacked_func",
    "zigzag_llama3_flash_attn_varlen_qkvpacked_func",
    "zigzag_ring_flash_attn_func",
    "zigzag_ring_flash_attn_kvpacked_func",
    "zigzag_ring_flash_attn_qkvpacked_func",
    "zigzag_ring_flash_attn_varlen_func",
    "zigzag_ring_flash_attn_varlen_kvpacked_func",
    "zigzag_ring_flash_attn_varlen_qkvpacked_func",
]

# Where each of these names is defined.
_MODULES = dict.fromkeys(__all__, "ringattn.functions") | {
    "ContextParallel": "ringattn.context_parallel",
    "UnsupportedError": "ringattn_core.errors",
    "__version__": "ringattn.version",
    "attention": "ringattn.native",
    "llama3_flash_attn_prepare_cu_seqlens": "ringattn.llama3",
    "run": "ringattn_comms.backends.threads",
}

if not TYPE_CHECKING:  # A type checker would take every name for one of these.

    def __getattr__(name: str) -> object:
        """Import a name when it is first used, as PEP 562 has it."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})
