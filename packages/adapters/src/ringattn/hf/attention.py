"""The attention function that transformers calls in every layer of a parallelized model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ringattn.hf import decode
from ringattn.hf.batch import KEYWORD, ShardedBatch
from ringattn.hf.decode import Decoding, Reach
from ringattn.hf.layers import BEYOND_MASKS
from ringattn.hf.mask_patterns import Band
from ringattn.hf.seen import Seen
from ringattn.native import attention
from ringattn.no_compile import no_compile
from ringattn_core.errors import UnsupportedError
from ringattn_core.plan.tile import FULL

_REFUSED = BEYOND_MASKS | {
    "cache": "a paged cache of continuous batching",
    "output_attentions": "the attention weights themselves, which are never formed as a whole",
}


_NOT_PARALLELIZED = (
    "{} uses the attention implementation 'ringattn' without knowing over which ranks sequences are sharded: call "
    "ringattn.hf.parallelize(model, group) before the model runs. If that was done, a layer between the model and its "
    "attention does not pass keyword arguments on. A model that was made from the config of a parallelized one has "
    "the implementation from there: choose another with model.set_attn_implementation."
)


@no_compile
def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Seen | None = None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """This rank's share of one layer's attention, by transformers' contract for attention functions.

    query: (batch, num_heads, tokens, head_dim); key, value: (batch, num_kv_heads, tokens, head_dim and head_dim_v).
    attention_mask: what `ringattn.hf.masks.mask` made for the layer; it overrides sliding_window and is_causal.
    sliding_window: query i sees key j if i - j < sliding_window, on global positions. s_aux: (num_heads,) sink logits.

    Returns (out, None), where out is (batch, tokens, num_heads, head_dim_v). Raises UnsupportedError for arguments that
    it cannot express, and for a model that was not parallelized.
    """
    batch = kwargs.get(KEYWORD)
    if not isinstance(batch, ShardedBatch | Decoding):
        raise UnsupportedError(_NOT_PARALLELIZED.format(type(module).__name__))
    _check(module, attention_mask, kwargs)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    left = -1 if sliding_window is None else sliding_window - 1
    # What was asked for as a mask is what transformers' own attention goes by, whatever the layer says of itself.
    asked = attention_mask if isinstance(attention_mask, Seen) else Seen(Band((left, 0 if causal else left)))
    seen, name = batch.seen or asked, type(module).__name__
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(batch, Decoding):
        reach = seen.reach(name, batch)
        return _decoded(name, query, key, value, batch, reach, scale, softcap or 0.0, s_aux), None
    batch.was_used = True
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    out = attention(
        q,
        k,
        v,
        cp=batch.stream,
        window_size=seen.window or FULL,
        mask=seen.mask(batch),
        softcap=softcap or 0.0,
        sinks=s_aux,
        softmax_scale=scale,
        dropout_p=dropout,
    )
    if batch.cache is not None:
        batch.cache.attended(seen.reach(name).size)
    return out.unflatten(0, (query.shape[0], -1)), None


def _decoded(
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    step: Decoding,
    reach: Reach,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """The newest tokens against the cache, whose layer keeps no more than their reach afterwards."""
    if query.shape[2] != step.tokens:
        raise UnsupportedError(
            f"{name} attends to the cache from {query.shape[2]} of the {step.tokens} new tokens, and does not say "
            "which."
        )
    step.cache.check(name, key, reach.size)
    out = decode.attend(query, key, value, step, scale=scale, reach=reach, softcap=softcap, sinks=sinks)
    step.cache.attended(reach.size)
    return out


def _check(module: nn.Module, attention_mask: Tensor | Seen | None, kwargs: dict[str, Any]) -> None:
    """Raise UnsupportedError for what the model asks of this call and no mask can say."""
    for name, reason in _REFUSED.items():
        given = kwargs.get(name)
        if given is not None and given is not False:
            raise UnsupportedError(f"{type(module).__name__} passes {name!r} to its attention: {reason}.")
    if isinstance(attention_mask, Tensor):
        raise UnsupportedError(
            f"{type(module).__name__} passes a mask of shape {tuple(attention_mask.shape)} to its attention, which it "
            "has made of this rank's tokens. Masks that transformers' mask functions make are supported."
        )
