"""The wrappers of flash-attn 2.6 and 2.8 and of FlashAttention-3, over stand-ins that call PyTorch's own kernel of 2.

What is proven is what the wrappers say to a package: windows, lengths, gaps and random states, in bfloat16 on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

import packages
from gpu.test_kernels import check
from launches import launches
from ringattn_core.kernels.flash_attn_2 import FlashAttn2
from ringattn_core.kernels.flash_attn_3 import FlashAttn3
from ringattn_core.kernels.torch_flash_cuda import TorchFlashCuda
from ringattn_core.plan.layout import contiguous
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import ring
from ringattn_core.plan.schedule import Launch
from ringattn_core.plan.tile import Tile
from ringattn_core.run.kernel import NO_OUT_GRADS, Kernel, Options, Queries
from ringattn_core.run.transport import KV

MAKE: dict[str, Callable[[], tuple[dict[str, ModuleType], type[Kernel]]]] = {
    "flash-attn 2.6": lambda: (packages.flash_attn_2_6(packages.Torch(2)), FlashAttn2),
    "flash-attn 2.8": lambda: (packages.flash_attn_2_8(packages.Torch(2)), FlashAttn2),
    "flash-attn 3": lambda: (packages.flash_attn_3(packages.Torch(3)), FlashAttn3),
    "torch": lambda: ({}, TorchFlashCuda),
}


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    modules, wrapper = MAKE[request.param]()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return wrapper()


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", MAKE, indirect=True)
@pytest.mark.parametrize("seed", range(2))
def test_random_launches(kernel: Kernel, seed: int) -> None:
    for case in launches(14, seed):
        reason = check(kernel, *case)
        assert reason is None or "Hopper" in reason, reason


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", MAKE, indirect=True)
@pytest.mark.parametrize(
    "tile",
    [Tile(range(600), range(100), low=-550), Tile(range(500), range(100), high=-100), Tile(range(3, 203), range(90))],
    ids=lambda tile: str(tile.window),
)
def test_windows_over_fewer_keys_than_queries(kernel: Kernel, tile: Tile) -> None:
    """FlashAttention-2 compares a window's right side with the wrong length, which `compact` has to undo."""
    trimmed = tile.trim()
    assert trimmed is not None
    reason = check(kernel, Launch((trimmed,)), 600, 100)
    assert reason is None or "Hopper" in reason, reason


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["flash-attn 2.6", "flash-attn 2.8"], indirect=True)
def test_dropout_is_replayed(kernel: Kernel) -> None:
    """With v = 1, out's rows sum the kept weights; the gradient of v by ones is their sum over columns."""
    launch = plan(contiguous, ring, (0, 512), (0, 512), 0, 1).steps[0].launches[0]
    q, k = (torch.randn(512, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    v, options = torch.ones_like(q), Options(0.125, dropout_p=0.3)
    block, rng_state = kernel.forward(q, KV(k, v), launch, options)
    queries = Queries(q, block.out, torch.ones_like(q), block.lse, None)
    first, second = (kernel.backward(queries, KV(k, v), launch, options, rng_state, NO_OUT_GRADS) for _ in range(2))
    assert torch.equal(first.dv, second.dv)
    torch.testing.assert_close(first.dv.double().sum(0), block.out.double().sum(0), rtol=2e-2, atol=2.0)
