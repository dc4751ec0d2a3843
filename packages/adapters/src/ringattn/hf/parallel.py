"""`parallelize`: two lines that spread a model's sequences over a group of ranks, and `restore`, which undoes them."""

from __future__ import annotations

from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import PreTrainedModel

from ringattn.context_parallel import ContextParallel
from ringattn.hf import refuse
from ringattn.hf.hook import Hooks
from ringattn.hf.register import NAME
from ringattn_comms.connect import Group
from ringattn_core.layout import Layout
from ringattn_core.route import Route

M = TypeVar("M", bound=nn.Module)

_hooks: WeakKeyDictionary[nn.Module, Hooks] = WeakKeyDictionary()


def parallelize(
    model: M,
    group: Group = None,
    *,
    layout: str | Layout = "zigzag",
    route: str | Route = "auto",
    head_groups: int = 1,
    kernel: str | None = None,
) -> M:
    """Let every forward pass of `model` run on this rank's share of each sequence, with exact attention over all.

    model: a decoder of transformers, or a module around one (DDP, PEFT, compiled).
    group: a ProcessGroup, a one-dimensional DeviceMesh (`mesh["cp"]`), or None for all processes.
    layout, route, head_groups, kernel: as for `ringattn.ContextParallel`.

    From then on every rank of the group calls the model with the same whole batch: input_ids (rows, tokens), labels,
    and what else the collator gives: attention_mask with padding at either side, position_ids that restart or
    cu_seq_lens_q for packed sequences. The loss is the whole batch's on every rank, as in one process; its gradients
    are to be averaged over the group, as DDP and FSDP do. Logits and hidden states are this rank's shards: see
    `unshard`. Calling it again changes the settings. Returns the model.

    Raises UnsupportedError for models that cannot run on a sharded sequence, with the layer type and the reason.
    """
    inner = refuse.outermost(model)
    refuse.check(inner)
    cp = ContextParallel(group, layout, route, head_groups=head_groups, kernel=kernel)
    # One communicator for all batches, and an error for a wrong group now rather than in the first batch.
    cp = ContextParallel(cp.communicator, cp.layout, cp.route, head_groups=head_groups, kernel=kernel)
    if inner in _hooks:
        _hooks.pop(inner).remove()
    inner.set_attn_implementation(NAME)
    _hooks[inner] = Hooks(inner, cp)
    return model


def restore(model: M, attn_implementation: str | None = None) -> M:
    """Undo `parallelize`; without it, do nothing. Returns the model.

    attn_implementation: what the model's attention runs on from now on; None is what transformers chooses by itself.
    """
    inner = refuse.outermost(model)
    if inner in _hooks:
        _hooks.pop(inner).remove()
        inner.set_attn_implementation(attn_implementation or inner.get_correct_attn_implementation(None))
    return model


def unshard(model: nn.Module, x: Tensor, dim: int = 1) -> Tensor:
    """The whole of an output of the model's last forward pass, logits say, in the order of the tokens, on every rank.

    Raises ValueError where the model is not parallelized or has not run.
    """
    hooks = _hooks.get(refuse.outermost(model))
    if hooks is None or hooks.last is None:
        raise ValueError(
            f"{type(model).__name__} has not run since ringattn.hf.parallelize was called on it: there is no batch "
            "whose shards could be put together."
        )
    return hooks.last.unshard(x, dim=dim)


def parallelized(model: PreTrainedModel) -> bool:
    """Is the model under the hooks of `parallelize`?"""
    return model in _hooks
