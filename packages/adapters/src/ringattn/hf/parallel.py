"""`parallelize`: two lines that spread a model's sequences over a group of ranks, and `restore`, which undoes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PretrainedConfig, Trainer

from ringattn.context_parallel import ContextParallel
from ringattn.hf import trainer, unsupported
from ringattn.hf.hook import Hooks
from ringattn.hf.register import NAME
from ringattn_comms.connect import Group
from ringattn_core.plan.layout import Layout
from ringattn_core.plan.route import Route

M = TypeVar("M", nn.Module, Trainer)


def parallelize(
    model: M,
    group: Group = None,
    *,
    cp: int | None = None,
    layout: str | Layout = "balanced",
    route: str | Route = "auto",
    head_groups: int = 1,
    kernel: str | None = None,
    logits: Literal["shards", "whole"] | None = None,
) -> M:
    """Let each forward pass of `model` run on this rank's shard of each sequence, with exact attention over all tokens.

    model: a decoder or an encoder of transformers, a module around one (DDP, PEFT, compiled), or a Trainer. In a
        vision-language model the text tower is sharded, and every rank processes all images. Below a head that does not
        predict the next token (classes, rewards, spans, masked words) the base model is sharded, and every rank
        computes the head from all hidden states, with whole logits and loss.
    group: a ProcessGroup, a one-dimensional DeviceMesh (`mesh["cp"]`), or None for all processes.
    cp: for a Trainer, instead of a group: the number of neighbouring processes that share a sequence.
    layout: as for `ringattn.ContextParallel`; "balanced" assigns most documents of a packed row to one rank each, and
        divides a row of one document, and every row of a batch of several, as "zigzag" does.
    route, head_groups, kernel: as for `ringattn.ContextParallel`.
    logits: "shards" are the logits of this rank's tokens, see `unshard` and `token_logprobs`; "whole" are those of all
        tokens, on every rank, for losses that are computed outside the model. None means "shards", or "whole" for a
        Trainer that computes its loss itself: its class overrides `compute_loss`, or it has a compute_loss_func or a
        label_smoothing_factor. A head that every rank computes has whole logits. If the part below a head is called by
        itself, its hidden states are whole.

    From then on every rank of the group calls the model with the same whole batch: input_ids (rows, tokens), labels,
    and the other arguments of the collator: attention_mask with padding at either side; for packed sequences
    cu_seq_lens_q or, without a mask, position_ids that restart; and any tensors of (rows, tokens, ...). Every rank gets
    the loss of the whole batch, as in one process, except for targets predicted by padding: the first real token of a
    row that is padded at the left, and labels or spans in padding. These depend on the attention implementation in one
    process too: label them -100 for equal losses. Outputs of one number for each token or target are whole; hidden
    states are shards. Gradients are to be averaged over the group, as DDP and FSDP do. To a Trainer the ranks of a
    group are one process: they get the same batches, and each text is gathered and counted once.
    Layers that mix tokens outside attention (linear attention, Mamba, short convolutions) run on whole sequences on
    every rank, so that their work and memory do not shrink with the number of ranks.
    The configs of the model are replaced by copies, so that other models with the same config object do not change.
    Calling it again changes the settings. Returns `model`.

    Raises UnsupportedError for models that cannot run on a sharded sequence, with the layer type and the reason, and
    for trainers whose first process makes all batches; ValueError for `cp` with a model, a group with a Trainer, a cp
    that does not divide the number of processes, groups of completions (GRPO) that do not fill the remaining batches,
    other `logits`, or whole logits of a model without a head; TypeError for a module that contains no model of
    transformers; and the errors of `ringattn.ContextParallel`. The first calls of the model raise ValueError if ranks
    have different batches. The attention is that of `ringattn.attention`.
    """
    if logits not in (None, "shards", "whole"):
        raise ValueError(f"logits must be 'shards' (of each rank's tokens) or 'whole' (of all tokens), got {logits!r}.")
    if isinstance(model, Trainer):
        if cp is None or group is not None:
            raise ValueError("For a Trainer give the number of processes that share texts: parallelize(trainer, cp=8).")
        of_mesh = partial(ContextParallel, layout=layout, route=route, head_groups=head_groups, kernel=kernel)
        _parallelize_trainer(model, cp, of_mesh, logits)
        return model  # type: ignore[no-any-return]
    if cp is not None:
        raise ValueError('cp is for a Trainer; for a model give its group: parallelize(model, mesh["cp"]).')
    _hook(model, ContextParallel(group, layout, route, head_groups=head_groups, kernel=kernel), logits == "whole")
    return model


def _parallelize_trainer(
    given: Trainer, cp: int, of_mesh: Callable[[DeviceMesh], ContextParallel], logits: str | None
) -> None:
    """Add hooks to the models of a trainer, and give the same batches to `cp` neighbouring processes."""
    trainer.check(given)
    whole = trainer.computes_loss(given) if logits is None else logits == "whole"
    mesh = trainer.mesh_of(given, cp)
    trainer.check_groups(given, mesh["dp"].size())
    shared = of_mesh(mesh["cp"])
    for each in trainer.models(given):
        _hook(each, shared, whole)
    trainer.share_batches(given, mesh)
    if not whole and trainer.computes_loss(given):
        trainer.explain_shards(given)


def _hook(model: nn.Module, cp: ContextParallel, whole_logits: bool) -> None:
    inner = unsupported.outermost(model)
    unsupported.check(inner)
    if whole_logits and inner.base_model is inner:
        raise ValueError(
            f"logits='whole' is for models with logits, and {type(inner).__name__} has none: the hidden states of all "
            "tokens are ringattn.hf.unshard(model, output.last_hidden_state)."
        )
    # One communicator for all batches, and an error for a wrong group now rather than in the first batch.
    cp = ContextParallel(cp.communicator, cp.layout, cp.route, head_groups=cp.head_groups, kernel=cp.kernel)
    hooks = Hooks.of(inner)
    if hooks is not None:
        hooks.remove(inner)
    else:
        _own_configs(model)
    unsupported.tower(inner).set_attn_implementation({"": NAME})  # not in other towers within it
    Hooks(inner, cp, whole_logits)


def _own_configs(model: nn.Module) -> None:
    """Replace the configs of a model by copies, because other models may have the same objects."""
    copies: dict[int, Any] = {}  # a config within another one stays the same object as that of a module
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, PretrainedConfig):
                vars(module)[name] = copy.deepcopy(value, copies)


def restore(model: M, attn_implementation: str | None = None) -> M:
    """Undo `parallelize`, if it was called. Returns `model`.

    attn_implementation: of the model from now on; None is the default of transformers.
    """
    if isinstance(model, Trainer):
        trainer.unshare_batches(model)
    for each in trainer.models(model) if isinstance(model, Trainer) else (model,):
        inner = unsupported.outermost(each)
        hooks = Hooks.of(inner)
        if hooks is not None:
            hooks.remove(inner)
            tower = unsupported.tower(inner)
            tower.set_attn_implementation({"": attn_implementation or tower.get_correct_attn_implementation(None)})
    return model


def unshard(model: nn.Module, x: Tensor, dim: int = 1) -> Tensor:
    """Gather an output of the model's last forward pass, such as logits, in the order of the tokens, on every rank.

    x: this rank's shard, (rows, tokens of this rank, ...) of any dtype, or with its tokens along another `dim`. Every
        rank makes the same call. Returns (rows, tokens, ...). Differentiable, as `ringattn.ContextParallel.unshard` is.

    Raises ValueError if the model is not parallelized or has not run.
    """
    hooks = Hooks.of(unsupported.outermost(model))
    if hooks is None or hooks.last is None:
        raise ValueError(
            f"{type(model).__name__} has not run since ringattn.hf.parallelize was called on it: there is no batch "
            "whose shards could be put together."
        )
    return hooks.last.unshard(x, dim=dim)
