"""The functions below autograd of ring-flash-attention's modules: a forward and a backward pass for each family.

Their arguments are those of version 0.1.8, in the same order; `ringattn.family` says what the lengths mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ringattn import checks
from ringattn.agree import telling
from ringattn.call import Call, CallSpec
from ringattn.conventions import CONVENTIONS, RAW_TAIL, Convention, names
from ringattn.family import Function, Given, divide, function
from ringattn.functions import FUNCTIONS
from ringattn.tensors import batched, check_tensors, flattened, flattened_lse
from ringattn_comms.connect import communicator
from ringattn_core.run.execute import Result
from ringattn_core.run.kernel import accumulator_dtype
from ringattn_core.run.transport import KV

_SAVED = "dout", "q", "k", "v", "out", "softmax_lse"


def exports(prefix: str, *others: Function) -> dict[str, Any]:
    """What the module of this family has: three functions, both passes below autograd, and the other functions."""
    convention = CONVENTIONS[prefix]
    lengths = (*convention.lengths, *(convention.raw_only or ()), "softmax_scale")

    def forward(given: Given) -> tuple[Tensor, Tensor]:
        call = _planned(convention, given)
        q, k, v = given["q"], given["k"], given["v"]
        with torch.no_grad():
            result, _ = call.forward(flattened(q), flattened(k), flattened(v), None)
        return result.out.view(*q.shape[:-1], v.shape[-1]), batched(result.lse, q)

    def backward(given: Given) -> tuple[Tensor, ...]:
        with telling(lambda: communicator(given["process_group"])):
            if given["dropout_p"]:
                raise ValueError(
                    f"{prefix}_backward got dropout_p={given['dropout_p']}, but not the random numbers of the forward "
                    f"pass: call {prefix}_func, which keeps them."
                )
        call = _planned(convention, given)
        with telling(lambda: communicator(given["process_group"])):
            _check_saved(given)
        dout, q, k, v, out = (flattened(given[name]) for name in _SAVED[:-1])
        result = Result(out, flattened_lse(given["softmax_lse"]), [])
        with torch.no_grad():
            grads = call.backward(None, dout, None, q, KV(k, v), result, None)
        return tuple(grad.view_as(given[name]) for grad, name in zip(grads[:3], ("q", "k", "v"), strict=True))

    required = {"forward": ("q", "k", "v", *lengths), "backward": (*_SAVED, *lengths)}
    docs = {
        "forward": "(out, softmax_lse) without autograd, of the shapes and dtypes that {}_func has.",
        "backward": "(dq, dk, dv) from what {}_forward was given and returned.",
    }
    found = {name: FUNCTIONS[name] for name in names(convention)} | {other.__name__: other for other in others}
    for way, compute in (("forward", forward), ("backward", backward)):
        module, name = f"ringattn.compat.ring_flash_attn.{prefix}", f"{prefix}_{way}"
        arguments = "process_group", *required[way]
        found[name] = function(module, name, docs[way].format(prefix), arguments, RAW_TAIL, compute)
    return {"__all__": sorted(found), **found}


def _check_saved(given: Given) -> None:
    """Raise unless dout, out and softmax_lse are of the forward pass of q, k and v, which have been checked."""
    q, v = given["q"], given["v"]
    check_tensors(
        "dout, out and softmax_lse must be tensors", *(given[name] for name in ("dout", "out", "softmax_lse"))
    )
    rows, lse_dtype = (*q.shape[:-1], v.shape[-1]), accumulator_dtype(q.dtype)
    lse_rows = (*q.shape[:-3], q.shape[-2], q.shape[-3])
    for name, shape, dtype in (("dout", rows, q.dtype), ("out", rows, q.dtype), ("softmax_lse", lse_rows, lse_dtype)):
        x = given[name]
        if (x.shape, x.dtype, x.device) != (shape, dtype, q.device):
            raise ValueError(
                f"{name} must be {shape} in {dtype} on {q.device}, as the forward pass of these q, k and v has it; got "
                f"{tuple(x.shape)} in {x.dtype} on {x.device}."
            )


def _planned(convention: Convention, given: Given) -> Call:
    q, k, v, scale = given["q"], given["k"], given["v"], given["softmax_scale"]
    with telling(lambda: communicator(given["process_group"])):
        check_tensors("q, k and v must be tensors", q, k, v)
        cp, borders, slopes = divide(convention, given["process_group"], q, k, v, given)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        window = checks.causal_window(given["causal"], given["window_size"])
        rest: tuple[Any, ...] = 0.0, scale, given["dropout_p"], given["deterministic"], True, borders
        return CallSpec(cp, given["causal"], window, *rest).plan(q, k, v, None, slopes)
