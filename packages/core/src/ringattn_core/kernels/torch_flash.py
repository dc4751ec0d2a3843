"""PyTorch's own flash attention under one name: `torch_flash_cpu` or `torch_flash_cuda`, by where the tensors are."""

from __future__ import annotations

from torch import Tensor

from ringattn_core.kernels.torch_flash_cpu import TorchFlashCpu
from ringattn_core.kernels.torch_flash_cuda import TorchFlashCuda
from ringattn_core.plan.schedule import Launch
from ringattn_core.run.kernel import NO_OUT_GRADS, Block, Grads, Kernel, Options, OutGrads, Queries


class TorchFlash:
    """The default that needs nothing but torch."""

    name = "torch_flash"
    accepts_delta = False
    returns_input_dtype = True
    supports_out = False

    def __init__(self) -> None:
        self._halves: dict[str, Kernel] = {"cpu": TorchFlashCpu(), "cuda": TorchFlashCuda()}

    def supports(self, launch: Launch, q: Tensor, k: Tensor, v: Tensor, options: Options) -> str | None:
        half = self._halves.get(q.device.type)
        return half.supports(launch, q, k, v, options) if half else f"it does not run on {q.device.type}"

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, launch: Launch, options: Options, out_block: Block | None = None
    ) -> tuple[Block, Tensor | None]:
        return self._halves[q.device.type].forward(q, k, v, launch, options, out_block)

    def backward(
        self,
        queries: Queries,
        k: Tensor,
        v: Tensor,
        launch: Launch,
        options: Options,
        rng_state: Tensor | None,
        out_grads: OutGrads = NO_OUT_GRADS,
    ) -> Grads:
        return self._halves[queries.q.device.type].backward(queries, k, v, launch, options, rng_state, out_grads)
