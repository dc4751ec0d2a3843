"""What a kernel takes, as data: devices, dtypes, head dims and options; and why a call is outside of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ringattn_core.run.kernel import Options

_MAJOR = {"Ampere": 8, "Hopper": 9}  # of the compute capability


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What every launch of a kernel has to be within; what depends on a launch's tiles is not in here.

    >>> limits = Limits(generation=None, dtypes=(torch.float32,), longest_dim=64, lacks=("softcap", "ALiBi"))
    >>> x = torch.empty(8, 2, 64)  # (tokens, heads, head_dim)
    >>> limits.why_unsupported(x, x, Options(1.0))
    >>> limits.why_unsupported(x, x[..., :32], Options(1.0))
    'it takes one head dim for keys and values, a multiple of 8 up to 64, not 64/32'
    >>> limits.why_unsupported(x, x, Options(1.0, softcap=30.0))
    'it has no softcap'
    """

    generation: Literal["Ampere", "Hopper"] | None  # of NVIDIA GPUs; None: the kernel runs on CPUs
    or_newer: bool = True
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)
    longest_dim: int | None = 256  # None: any head dim
    one_dim: bool = True  # v has the head dim of q and k
    other_dims: tuple[tuple[int, int], ...] = ()  # further pairs, of q and k and of v
    lacks: tuple[Literal["softcap", "ALiBi", "dropout", "deterministic backward"], ...] = ()

    def why_unsupported(self, q: Tensor, v: Tensor, options: Options) -> str | None:
        """Why the kernel cannot take tensors like these with these options; None if it can."""
        return self._device(q.device) or self._dtype(q.dtype) or self._dims(q, v) or self._options(options)

    def _device(self, device: torch.device) -> str | None:
        if self.generation is None:
            return None if device.type == "cpu" else f"it runs on a CPU and the tensors are on {device}"
        wanted = _MAJOR[self.generation]
        major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
        if major == wanted or (major > wanted and self.or_newer):
            return None
        return f"it needs an NVIDIA GPU of the {self.generation} generation{' or newer' if self.or_newer else ''}"

    def _dtype(self, dtype: torch.dtype) -> str | None:
        *names, last = (str(each).removeprefix("torch.") for each in self.dtypes)
        taken = f"{', '.join(names)} and {last}" if names else last
        return None if dtype in self.dtypes else f"it takes {taken}, not {dtype}"

    def _dims(self, q: Tensor, v: Tensor) -> str | None:
        dims, longest = (q.shape[-1], v.shape[-1]), self.longest_dim
        same = dims[0] == dims[1] or not self.one_dim
        short = longest is None or (max(dims) <= longest and all(dim % 8 == 0 for dim in dims))
        if (same and short) or dims in self.other_dims:
            return None
        taken = "one head dim for keys and values" if self.one_dim else "head dims for keys and for values"
        if longest is not None:
            taken += f", {'a multiple' if self.one_dim else 'multiples'} of 8 up to {longest}"
        taken += "".join(f", or {dim}/{dim_v}" for dim, dim_v in self.other_dims)
        return f"it takes {taken}, not {dims[0]}/{dims[1]}"

    def _options(self, options: Options) -> str | None:
        asked = {
            "softcap": options.softcap > 0,
            "ALiBi": options.alibi_slopes is not None,
            "dropout": options.dropout_p > 0,
            "deterministic backward": options.deterministic,
        }
        missing = [option for option in asked if asked[option] and option in self.lacks]
        return f"it has no {' and no '.join(missing)}" if missing else None
