"""The package `ring_flash_attn` by the same names: what version 0.1.8 exports, and the modules that others import."""

from importlib import import_module

from ringattn.compat.ring_flash_attn.adapters import substitute_hf_flash_attn, update_ring_flash_attn_params
from ringattn.conventions import CONVENTIONS, names
from ringattn.llama3 import llama3_flash_attn_prepare_cu_seqlens

_EXPORTS = {
    function.__name__: function
    for function in (llama3_flash_attn_prepare_cu_seqlens, substitute_hf_flash_attn, update_ring_flash_attn_params)
}
for _row in (row for row in CONVENTIONS.values() if row.raw_only is not None):
    _module = import_module(f"{__name__}.{_row.prefix}")
    _EXPORTS |= {name: getattr(_module, name) for name in names(_row)}
globals().update(_EXPORTS)
__all__ = sorted(_EXPORTS)  # noqa: PLE0605 - made from the table
