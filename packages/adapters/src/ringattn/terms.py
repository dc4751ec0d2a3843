"""What all ranks must ask for alike: the arguments of a call as part of a header, which ranks compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ringattn import agree
from ringattn.lengths import Borders
from ringattn.mask_rows import described
from ringattn.version import __version__
from ringattn_comms.header import encoded
from ringattn_core.plan.layout import Sharding
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.route import travels_whole
from ringattn_core.plan.tile import Window

if TYPE_CHECKING:
    from ringattn.call import CallSpec


def agreed_terms(
    spec: CallSpec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    seen: Window | Mask,
    batch: int,
    sharding: Sharding,
    borders: tuple[Borders, Borders],
) -> bytes:
    """What all ranks must ask for alike, as part of a header. The first difference is the one that is reported."""
    cp, slopes = spec.cp, agree.shared(alibi_slopes)
    if travels_whole(cp.route):  # Its ranks do not know each other's sequences.
        borders = Borders((0, borders[0][-1])), Borders((0, borders[1][-1]))
        slopes = "none" if alibi_slopes is None else "given"
    return encoded(
        (
            ("version", __version__),
            ("RINGATTN_CHECK", agree.checked()),
            ("num_heads", q.shape[-2]),
            ("num_kv_heads", k.shape[-2]),
            ("head_dim", q.shape[-1]),
            ("head_dim_v", v.shape[-1]),
            ("dtype", q.dtype),
            ("device", q.device.type),
            ("mask", described(seen)),
            ("layout", agree.named(cp.layout)),
            ("route", agree.named(cp.route)),
            ("functions", agree.functions(sharding, cp.route)),
            ("per_sequence", cp.per_sequence),
            ("head_groups", cp.head_groups),
            ("rows", batch),
            ("cu_seqlens", borders[0]),
            ("cu_seqlens_k", borders[1]),
            # 1, 1.0 and True are one number, and one key of what `encoded` remembers.
            ("softmax_scale", float(spec.softmax_scale)),
            ("softcap", float(spec.softcap)),
            ("dropout", float(spec.dropout_p)),
            ("sinks", agree.shared(sinks)),
            ("alibi_slopes", slopes),
            ("deterministic", bool(spec.deterministic)),
            ("needs_gradients", spec.needs_gradients),
        )
    )
