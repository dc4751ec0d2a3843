"""PyTorch's own flash attention under one name: `torch_flash_cpu` or `torch_flash_cuda`, by where the tensors are."""

from __future__ import annotations

from torch import Tensor

from ringattn_core.kernels.torch_flash_cpu import TorchFlashCpu
from ringattn_core.kernels.torch_flash_cuda import TorchFlashCuda
from ringattn_core.plan.schedule import Launch
from ringattn_core.run.kernel import Block, Grads, Kernel, Options, OutGrads, Queries
from ringattn_core.run.transport import KV


class TorchFlash(Kernel):
    """The default that needs nothing but torch."""

    name = "torch_flash"
    returns_input_dtype = True
    speed = (0.49, 0.50)  # 16,384 tokens, causal, on an H100 in November 2026

    def __init__(self) -> None:
        self._halves: dict[str, Kernel] = {"cpu": TorchFlashCpu(), "cuda": TorchFlashCuda()}

    def supports(self, launch: Launch, q: Tensor, kv: KV, options: Options) -> str | None:
        half = self._halves.get(q.device.type)
        return half.supports(launch, q, kv, options) if half else f"it does not run on {q.device.type}"

    def forward(
        self, q: Tensor, kv: KV, launch: Launch, options: Options, out_block: Block | None = None
    ) -> tuple[Block, Tensor | None]:
        return self._halves[q.device.type].forward(q, kv, launch, options, out_block)

    def backward(
        self, queries: Queries, kv: KV, launch: Launch, options: Options, rng_state: Tensor | None, out_grads: OutGrads
    ) -> Grads:
        return self._halves[queries.q.device.type].backward(queries, kv, launch, options, rng_state, out_grads)
