"""The module `ring_flash_attn.adapters.hf_adapter`: FlashAttention in transformers' models, over the ranks of a group.

As in the original, one group and one packing hold for the whole process. `ringattn.hf.parallelize` is per model, and
shards inputs, labels and positions itself.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ringattn.agree import telling
from ringattn.context_parallel import ContextParallel
from ringattn.lengths import Borders
from ringattn.llama3 import ContractError, head_groups, llama3_flash_attn_prepare_cu_seqlens, stream_borders
from ringattn.native import attention
from ringattn.no_compile import no_compile
from ringattn.tensors import autocasts
from ringattn_comms.connect import communicator
from ringattn_core.plan.layout import contiguous
from ringattn_core.plan.route import at_once

Forward = Callable[..., Any]

DATA_PARAMS: dict[str, Any] = {}  # read by the next forward pass; other projects read and write it too
RING_ATTN_SWITCH = True
_KEYS = "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "local_k_slice"
_NAMES = "flash_attention_2", "flash_attention_3", "flash_attention_4"
_originals: dict[str, Forward] = {}  # of transformers, by the name they are registered under
_forwards: list[Forward] = []  # what `create_ring_flash_attention_forward` last returned to `substitute_hf_flash_attn`


def check_params(f1: Forward, f2: Forward) -> bool:
    """Do two functions take the same number of parameters?"""
    return len(inspect.signature(f1).parameters) == len(inspect.signature(f2).parameters)


@no_compile
def update_ring_flash_attn_params(cu_seqlens: Tensor, process_group: dist.ProcessGroup) -> None:
    """State the packing of the next batch: the *global* borders, whose total the group's size divides."""
    values = llama3_flash_attn_prepare_cu_seqlens(
        cu_seqlens,
        causal=True,
        rank=dist.get_rank(process_group),
        world_size=dist.get_world_size(process_group),
    )
    DATA_PARAMS.update(zip(_KEYS, values, strict=True))


def use_ring_attn(flag: bool) -> None:
    """Turn attention over all ranks on, or off, as for generation."""
    global RING_ATTN_SWITCH  # noqa: PLW0603 - others read and write it by this name
    RING_ATTN_SWITCH = flag


def create_ring_flash_attention_forward(process_group: dist.ProcessGroup, heads_k_stride: int) -> list[Forward]:
    """The function that takes the place of transformers' `_flash_attention_forward`, in a list.

    Other projects replace this function by one of their own: `substitute_hf_flash_attn` looks it up when it is called.
    """

    def _flash_attention_forward(
        query_states: Tensor,
        key_states: Tensor,
        value_states: Tensor,
        attention_mask: Tensor | None = None,
        query_length: int | None = None,
        is_causal: bool = True,
        dropout: float = 0.0,
        position_ids: Tensor | None = None,
        softmax_scale: float | None = None,
        sliding_window: int | None = None,
        use_top_left_mask: bool = False,
        softcap: float | None = None,
        deterministic: bool | None = None,
        **kwargs: Any,
    ) -> Tensor:
        with telling(lambda: communicator(process_group)):
            cp, borders = _divided(process_group, heads_k_stride, query_states, key_states, is_causal)
        left = -1 if sliding_window is None else sliding_window - 1
        if deterministic is None:
            deterministic = os.environ.get("FLASH_ATTENTION_DETERMINISTIC", "0") == "1"
        out: Tensor = attention(
            query_states[0],
            key_states[0],
            value_states[0],
            cp=cp,
            causal=True,
            window_size=(left, 0),
            softcap=softcap or 0.0,
            sinks=kwargs.get("s_aux"),
            softmax_scale=softmax_scale,
            dropout_p=dropout,
            deterministic=deterministic,
            cu_seqlens=borders,
        )
        return out[None]

    return [no_compile(_flash_attention_forward)]


def _divided(
    process_group: dist.ProcessGroup, heads_k_stride: int, query: Tensor, key: Tensor, is_causal: bool
) -> tuple[ContextParallel, Borders]:
    """How a call is divided among the ranks. Raises ValueError for what cannot be."""
    if query.shape[0] != 1:
        raise ValueError(
            f"The batch must be one packed row, (1, tokens, heads, head_dim), got {tuple(query.shape)}: "
            "ringattn.hf.parallelize takes batches of any number of rows."
        )
    if not is_causal:
        raise ContractError(
            "Only causal attention goes over the ranks here, because update_ring_flash_attn_params cuts the keys "
            "after a rank's last query: load a model that is not causal with another attn_implementation."
        )
    groups = head_groups(key, heads_k_stride)
    cp = ContextParallel(process_group, contiguous, at_once, per_sequence=False, head_groups=groups)
    return cp, _borders(cp, query.shape[1])


def _borders(cp: ContextParallel, tokens: int) -> Borders:
    missing = [name for name in _KEYS if name not in DATA_PARAMS]
    if missing:
        raise ValueError(
            f"DATA_PARAMS lacks {', '.join(missing)}: call update_ring_flash_attn_params(cu_seqlens, process_group) "
            "with the global borders of the batch before the model runs."
        )
    told = DATA_PARAMS["cu_seqlens_q"], DATA_PARAMS["cu_seqlens_k"], DATA_PARAMS["local_k_slice"]
    return stream_borders(*told, cp.cp_rank, cp.cp_size, tokens)


def flash_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over all ranks by transformers' contract: (batch, heads, tokens, head_dim) in, (out, None) out.

    float32 is computed in the dtype of autocast, or of the model's weights, as transformers does for FlashAttention.
    """
    dtype = _computed_in(module, query)
    out = _forward()(
        *(x.transpose(1, 2).to(dtype) for x in (query, key, value)),
        attention_mask,
        query_length=query.shape[2],
        is_causal=_is_causal(module, kwargs.pop("is_causal", None)),
        dropout=dropout,
        softmax_scale=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        **kwargs,
    )
    return out.to(query.dtype), None


def _computed_in(module: Any, query: Tensor) -> torch.dtype:
    if query.dtype != torch.float32:
        return query.dtype
    if autocasts(query.device):
        return torch.get_autocast_dtype(query.device.type)
    weights = (layer.weight.dtype for layer in module.modules() if isinstance(layer, nn.Linear))
    dtype = next(weights, torch.float32)
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        # Quantized weights have no dtype to compute in; the configuration states the one that they stand for.
        dtype = module.config.dtype
    return dtype


def _is_causal(module: nn.Module, stated: bool | None) -> bool:
    return getattr(module, "is_causal", True) if stated is None else stated


def _forward() -> Forward:
    """The replacement of transformers' `_flash_attention_forward`: made by `substitute_hf_flash_attn`, or assigned."""
    if _forwards:
        # The original has one for each generation of transformers, the newest one last.
        return _forwards[-1]
    from transformers import modeling_flash_attention_utils

    # Other projects, axolotl for one, register `flash_attention_forward` and assign this name a function of their own.
    forward: Forward = modeling_flash_attention_utils._flash_attention_forward
    if forward.__module__ == modeling_flash_attention_utils.__name__:
        raise ValueError("The ranks to attend over are unknown: call substitute_hf_flash_attn(process_group, 1) first.")
    return forward


def substitute_hf_flash_attn(process_group: dist.ProcessGroup, heads_k_stride: int) -> None:
    """Let models of transformers that were loaded with "flash_attention_2" (3, 4) attend over the ranks of a group.

    It replaces entries in transformers' table of attention functions; a second call changes group and stride. Modules
    that are not causal, such as a vision tower's, keep the original entries. Raises ValueError if transformers has no
    such table.
    """
    try:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    except ImportError as error:
        raise ValueError(f"transformers 4.48 or newer is needed, for ALL_ATTENTION_FUNCTIONS: {error}.") from error
    _forwards[:] = create_ring_flash_attention_forward(process_group, heads_k_stride)
    for name in _NAMES:
        if name in ALL_ATTENTION_FUNCTIONS:
            _originals.setdefault(name, ALL_ATTENTION_FUNCTIONS[name])
            # Set the table's entry, as the original does: it takes precedence over what AttentionInterface registered.
            ALL_ATTENTION_FUNCTIONS[name] = _switched(name)


def _switched(name: str) -> Forward:
    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        ours = RING_ATTN_SWITCH and _is_causal(module, kwargs.get("is_causal"))
        return (flash_attention_forward if ours else _originals[name])(module, *args, **kwargs)

    return forward
