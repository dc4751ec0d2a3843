"""The wrappers of flash-attn 2.6 and 2.8 and of FlashAttention 3 and 4 over stand-ins with their signatures, on CPUs.

`packages` says which versions the stand-ins were read from. They compute densely in float32, so what is proven here is
what the wrappers say to a package, not the package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import packages
from launches import launches, solve
from ringattn_core.errors import UnsupportedError
from ringattn_core.kernels import choose as chooser
from ringattn_core.kernels import flash_attn_4
from ringattn_core.kernels.choose import choose, installed, refusal
from ringattn_core.kernels.flash_attn_2 import FlashAttn2
from ringattn_core.kernels.flash_attn_3 import FlashAttn3
from ringattn_core.kernels.flash_attn_4 import FlashAttn4
from ringattn_core.plan.layout import contiguous
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import ring
from ringattn_core.plan.schedule import Launch, Schedule
from ringattn_core.plan.tile import Tile
from ringattn_core.run.accumulate import has_triton
from ringattn_core.run.kernel import NO_OUT_GRADS, Block, Kernel, Options, OutGrads, Queries
from ringattn_core.run.transport import KV

SCALE = 0.3
Make = Callable[[packages.Math], dict[str, ModuleType]]
WRAPPERS = [
    pytest.param(packages.flash_attn_2_6, FlashAttn2, 2, id="flash-attn 2.6"),
    pytest.param(packages.flash_attn_2_8, FlashAttn2, 2, id="flash-attn 2.8"),
    pytest.param(packages.flash_attn_3, FlashAttn3, 3, id="flash-attn 3"),
    pytest.param(packages.flash_attn_4, FlashAttn4, 3, id="flash-attn 4"),
]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, ModuleType]], None]]:
    """Puts modules where imports find them; the kernels that `choose` has made are forgotten before and afterwards."""

    def put(modules: dict[str, ModuleType]) -> None:
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        flash_attn_4._functions.cache_clear()
        chooser._CHOSEN.clear()

    chooser._kernel.cache_clear()
    put({})
    yield put
    put({})
    chooser._kernel.cache_clear()


@pytest.mark.parametrize(("make", "wrapper", "rule"), WRAPPERS)
@pytest.mark.parametrize("seed", range(2))
def test_random_launches(install, make: Make, wrapper: type[Kernel], rule: int, seed: int) -> None:
    install(make(packages.Dense(rule)))
    found = launches(24, seed)
    assert any(len(launch.tiles) > 1 and not launch.dense_rows for launch, *_ in found)
    for launch, tokens_q, tokens_k in found:
        solve(wrapper(), launch, tokens_q, tokens_k, Options(SCALE))


NARROW = [
    # A window that still reaches the keys of a short shard: open on the right, closed on the left.
    Launch((Tile(range(60), range(10), low=-50),)),
    # More keys would be seen to the right than there are, but not by the first rows.
    Launch((Tile(range(50), range(10), high=-10),)),
    Launch((Tile(range(2, 52), range(3, 13), high=-10), Tile(range(60, 110), range(20, 30), high=-51))),
    Launch((Tile(range(40), range(30), low=-20, high=5),)),
]


@pytest.mark.parametrize(("make", "wrapper", "rule"), WRAPPERS)
@pytest.mark.parametrize("launch", NARROW, ids=lambda launch: str(launch.window))
def test_windows_over_fewer_keys_than_queries(
    install, make: Make, wrapper: type[Kernel], rule: int, launch: Launch
) -> None:
    """FlashAttention-2 compares a window's right side with the wrong length, which the wrapper has to undo."""
    trimmed = Launch(tuple(part for tile in launch.tiles if (part := tile.trim())))
    install(make(packages.Dense(rule)))
    solve(wrapper(), trimmed, 120, 40, Options(SCALE))


@pytest.mark.parametrize(("make", "wrapper", "rule"), WRAPPERS)
def test_softcap(install, make: Make, wrapper: type[Kernel], rule: int) -> None:
    install(make(packages.Dense(rule)))
    for launch, tokens_q, tokens_k in launches(4, 5):
        solve(wrapper(), launch, tokens_q, tokens_k, Options(SCALE, softcap=1.5))


@pytest.mark.parametrize("make", [packages.flash_attn_2_6, packages.flash_attn_2_8])
@pytest.mark.parametrize("borders", [(0, 40), (0, 15, 40)])
def test_dropout_is_replayed(install, make: Make, borders: tuple[int, ...]) -> None:
    """With v = 1, out's rows sum the kept weights; the gradient of v by ones is their sum over columns."""
    install(make(packages.Dense(2)))
    launch = plan(contiguous, ring, borders, borders, 0, 1).steps[0].launches[0]
    kernel, options = FlashAttn2(), Options(SCALE, dropout_p=0.4)
    q, k, v = torch.randn(40, 2, 8), torch.randn(40, 2, 8), torch.ones(40, 2, 8)
    (first, state), (second, other) = (kernel.forward(q, KV(k, v), launch, options) for _ in range(2))
    assert not torch.equal(first.out, second.out), "a launch draws its own mask"
    for block, rng_state in ((first, state), (second, other)):
        grads = kernel.backward(
            Queries(q, block.out, torch.ones(40, 2, 8), block.lse, None),
            KV(k, v),
            launch,
            options,
            rng_state,
            NO_OUT_GRADS,
        )
        torch.testing.assert_close(grads.dv.sum(0), block.out.sum(0))


@pytest.mark.parametrize(("make", "wrapper", "rule"), WRAPPERS)
def test_gaps_are_gathered_for_2_and_said_to_3(install, make: Make, wrapper: type[Kernel], rule: int) -> None:
    dense = packages.Dense(rule)
    install(make(dense))
    launch = Launch((Tile(range(5), range(2, 9)), Tile(range(8, 12), range(9, 12))))
    solve(wrapper(), launch, 12, 12, Options(SCALE))
    for lengths, _ in dense.calls:
        starts = [0, 8, 12] if rule == 3 else [0, 5, 9]
        assert lengths.cu_seqlens_q is not None and lengths.cu_seqlens_q.tolist() == starts
        assert lengths.cu_seqlens_k is not None and lengths.cu_seqlens_k.tolist() == [0, 7, 10]
        assert (lengths.max_seqlen_q, lengths.max_seqlen_k) == (5, 7)
        used = None if lengths.seqused_q is None else lengths.seqused_q.tolist()
        assert (used, lengths.seqused_k) == ([5, 4] if rule == 3 else None, None)


def test_flash_attn_4_writes_into_the_places_that_it_is_given(install) -> None:
    """Into some of the gradients' or all; what lies between the tiles of a launch stays as it was."""
    install(packages.flash_attn_4(packages.Dense(3)))
    kernel, options = FlashAttn4(), Options(SCALE)
    for launch in (
        Launch((Tile(range(3, 9), range(1, 8)),)),
        Launch((Tile(range(5), range(2, 9)), Tile(range(8, 12), range(11, 14)))),
    ):
        q, k, v, dout = (torch.randn(16, heads, 8) for heads in (4, 2, 2, 4))
        block, _ = kernel.forward(q, KV(k, v), launch, options)
        place = Block(torch.full_like(block.out, 7.0), torch.full_like(block.lse, 7.0))
        assert kernel.forward(q, KV(k, v), launch, options, place)[0] is place
        queries = Queries(q, torch.randn_like(q), dout, torch.randn(4, 16), None)
        grads = kernel.backward(queries, KV(k, v), launch, options, None, NO_OUT_GRADS)
        places = [torch.full_like(grad, 7.0) for grad in grads]
        for given in (OutGrads(*places), OutGrads(None, places[1]), OutGrads(dv=places[2])):
            found = kernel.backward(queries, KV(k, v), launch, options, None, given)
            assert all(x is None or got is x for got, x in zip(found, given, strict=True))
        for got, want in zip((*place, *places), (*block, *grads), strict=True):
            torch.testing.assert_close(got, want.nan_to_num(7.0), rtol=1e-5, atol=1e-5)


def test_other_versions_of_flash_attn_are_refused(install) -> None:
    modules = packages.flash_attn_2_8(packages.Dense(2))
    install(modules)
    for version in ("2.5.9.post1", "3.0.0"):
        modules["flash_attn"].__version__ = version  # type: ignore[attr-defined]
        with pytest.raises(ImportError, match=version):
            FlashAttn2()


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Tensor, Tensor, Tensor]]]:
    """q, k and v as on an H200, as far as `supports` can see: fake tensors, without memory."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    with FakeTensorMode():

        def draw(
            dim: int = 128, dim_v: int = 128, dtype: torch.dtype = torch.bfloat16
        ) -> tuple[Tensor, Tensor, Tensor]:
            shapes = (512, 4, dim), (512, 2, dim), (512, 2, dim_v)
            q, k, v = (torch.empty(shape, device="cuda", dtype=dtype) for shape in shapes)
            return q, k, v

        yield draw


def schedule(window: tuple[int, int] = (-1, 0), borders: tuple[int, ...] = (0, 1024)) -> Schedule:
    return plan(contiguous, ring, borders, borders, 0, 2, window=window)


def test_choose_by_what_is_there(install, hopper) -> None:
    tensors, full = hopper(), packages.flash_attn_3(packages.Dense(3))

    def chosen(**options: float) -> str:
        return choose(*tensors, schedule(), Options(SCALE, **options)).name

    assert (chosen(), chosen(dropout_p=0.1)) == ("cudnn", "torch_flash")
    assert (chosen(softcap=5.0), chosen(deterministic=True)) == ("reference", "reference")
    install(packages.flash_attn_2_8(packages.Dense(2)))
    assert (chosen(), chosen(dropout_p=0.1)) == ("cudnn", "torch_flash")
    assert (chosen(softcap=5.0), chosen(deterministic=True)) == ("flash_attn_2", "flash_attn_2")
    install(full)
    assert (chosen(), chosen(softcap=5.0), chosen(deterministic=True)) == ("flash_attn_3",) * 3
    assert chosen(dropout_p=0.1) == "torch_flash"


def test_why_flash_attn_2_refuses(install, hopper) -> None:
    install(packages.flash_attn_2_8(packages.Dense(2)))

    def why(tensors: tuple[Tensor, ...], **options: object) -> str:
        return refusal("flash_attn_2", *tensors, schedule(), Options(SCALE, **options)) or ""

    assert why(hopper()) == ""
    assert "ALiBi" in why(hopper(), alibi_slopes=torch.empty(4))
    assert "dropout with softcap" in why(hopper(), softcap=1.0, dropout_p=0.1)
    assert "192/128" in why(hopper(192, 128))
    assert "float32" in why(hopper(dtype=torch.float32))
    assert "NVIDIA GPU" in why(tuple(torch.empty(512, 2, 8) for _ in range(3)))


@pytest.mark.parametrize(
    ("left_out", "reason"),
    [
        ("BACKWARD", "no backward pass"),
        ("SOFTCAP", "no softcap"),
        ("LOCAL", "no windows"),
        ("VARLEN", "no packed sequences"),
        ("FP16", "no float16"),
        ("HDIM256", "no head dim 256"),
    ],
)
def test_a_build_of_flash_attn_3_says_what_it_lacks(install, hopper, left_out: str, reason: str) -> None:
    """Each build computes all but what it left out; one without the backward pass is of no use."""
    install(packages.flash_attn_3(packages.Dense(3), left_out))
    tensors, plainly = hopper(), Options(SCALE)
    cases = {
        "SOFTCAP": (tensors, schedule(), Options(SCALE, softcap=1.0)),
        "LOCAL": (tensors, schedule((100, 0)), plainly),
        "VARLEN": (tensors, schedule(borders=(0, 512, 1024)), plainly),
        "FP16": (hopper(dtype=torch.float16), schedule(), plainly),
        "HDIM256": (hopper(256, 256), schedule(), plainly),
    }
    for flag, (given, asked, options) in cases.items():
        why = refusal("flash_attn_3", *given, asked, options)
        assert why == (f"this build of it has {reason}" if left_out in (flag, "BACKWARD") else None), flag


def test_why_flash_attn_3_refuses(install, hopper, monkeypatch: pytest.MonkeyPatch) -> None:
    install(packages.flash_attn_3(packages.Dense(3), "HDIM96", "HDIMDIFF192"))

    def why(tensors: tuple[Tensor, ...], **options: object) -> str:
        return refusal("flash_attn_3", *tensors, schedule(), Options(SCALE, **options)) or ""

    assert (why(hopper()), why(hopper(96, 96))) == ("", "")
    assert "192/128" in why(hopper(192, 128))
    assert "dropout" in why(hopper(), dropout_p=0.1)
    assert "deterministic" in why(hopper(256, 256), deterministic=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (10, 0))
    assert "Hopper" in why(hopper())


def test_a_package_that_is_not_there_is_named(hopper, install, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flash_attn", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnsupportedError, match=r"'flash_attn_2' cannot compute this: .*flash_attn.*Choose 'cudnn'"):
        choose(*hopper(), schedule(), Options(SCALE), "flash_attn_2")
    with pytest.raises(UnsupportedError, match=r"cannot be imported: .*flash_attn_interface"):
        choose(*hopper(), schedule(), Options(SCALE), "flash_attn_3")


@pytest.mark.parametrize("stub", [ModuleType("stub"), MagicMock()], ids=["module", "mock"])
def test_a_stub_in_place_of_a_package_is_passed_over(stub: Any, install, monkeypatch: pytest.MonkeyPatch) -> None:
    """As test suites put one there for machines without GPUs; it has no __spec__."""
    install({"flash_attn": stub, "flash_attn_interface": stub, "triton": stub})
    assert choose(*[torch.zeros(8, 2, 16)] * 3, schedule(), Options(1.0)).name == "torch_flash"
    with pytest.raises(UnsupportedError, match=r"'flash_attn_4' .* cannot be imported: .* is not installed"):
        choose(*[torch.zeros(8, 2, 16)] * 3, schedule(), Options(1.0), "flash_attn_4")
    assert not has_triton.__wrapped__()


def test_a_flash_attn_that_cannot_be_imported_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention 4 lives in the same package as FlashAttention 2, whose library may not fit PyTorch."""
    (tmp_path / "flash_attn").mkdir()
    broken = "raise ImportError('flash_attn_2_cuda.so: undefined symbol')"
    (tmp_path / "flash_attn/__init__.py").write_text(broken, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    schedule = plan(contiguous, ring, (0, 8), (0, 8), 0, 1)
    with pytest.raises(UnsupportedError, match=r"'flash_attn_4' .* cannot be imported: .* undefined symbol"):
        choose(*[torch.zeros(8, 2, 16)] * 3, schedule, Options(1.0), "flash_attn_4")
    assert "flash_attn_4" not in installed.__wrapped__()
