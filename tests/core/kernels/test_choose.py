"""Which kernel gets a schedule, what is said when the named one cannot do it, and that asking again costs nothing."""

from __future__ import annotations

import ast
import gc
import re
from pathlib import Path

import pytest
import torch

from problem import Problem, assert_exact
from ringattn_comms.backends.threads import run
from ringattn_core.errors import UnsupportedError
from ringattn_core.kernels import choose as module
from ringattn_core.kernels.choose import choose
from ringattn_core.kernels.reference import Reference
from ringattn_core.plan import planner
from ringattn_core.plan.layout import Sharding, contiguous, striped, zigzag
from ringattn_core.plan.planner import plan
from ringattn_core.plan.route import gather, ring
from ringattn_core.plan.schedule import Schedule
from ringattn_core.plan.tile import FULL
from ringattn_core.run.kernel import Options
from work import instructions

Q, K, V = torch.zeros(8, 4, 16), torch.zeros(8, 2, 16), torch.zeros(8, 2, 16)
PLAIN = Options(1.0)


def schedule(window: tuple[int, int] = (-1, 0)) -> Schedule:
    return plan(zigzag, ring, (0, 16), (0, 16), 0, 2, window=window)


class Counting(Reference):
    """A kernel that counts how often it is asked."""

    name = "counting"
    asked = 0

    def supports(self, *_: object) -> str | None:
        self.asked += 1
        return None


@pytest.mark.parametrize("route", [ring, gather])
def test_on_a_cpu_causal_and_full_tiles_are_for_torch_flash(route: object) -> None:
    for window in ((-1, 0), (-1, -1)):
        for rank in range(3):
            planned = plan(contiguous, route, (0, 10, 24), (0, 10, 24), rank, 3, window=window)
            assert choose(Q, K, V, planned, PLAIN).name == "torch_flash"


@pytest.mark.parametrize(
    "options",
    [
        Options(1.0, softcap=2.0),
        Options(1.0, alibi_slopes=torch.ones(4)),
        Options(1.0, dropout_p=0.1),
    ],
)
def test_what_torch_flash_cannot_do_the_reference_kernel_does(options: Options) -> None:
    assert choose(Q, K, V, schedule(), options).name == "reference"


def test_one_launch_that_cannot_be_done_decides() -> None:
    assert choose(Q, K, V, schedule((3, 0)), PLAIN).name == "reference"


def test_a_gradient_of_lse_decides() -> None:
    assert choose(Q, K, V, schedule(), PLAIN, lse_gradient=True).name == "reference"
    with pytest.raises(UnsupportedError, match="'torch_flash' cannot compute this: it has no gradient of lse"):
        choose(Q, K, V, schedule(), PLAIN, "torch_flash", lse_gradient=True)


@pytest.mark.parametrize("name", ["reference", "torch_flash"])
def test_by_name(name: str) -> None:
    assert choose(Q, K, V, schedule(), PLAIN, name).name == name


def test_a_named_kernel_that_cannot_do_it_says_why_and_which_can() -> None:
    expected = "The kernel 'torch_flash' cannot compute this: it has no softcap. Choose 'reference', or no name at all."
    with pytest.raises(UnsupportedError, match=re.escape(expected)):
        choose(Q, K, V, schedule(), Options(1.0, softcap=2.0), "torch_flash")
    with pytest.raises(UnsupportedError, match=r"a launch needs the window .* Choose 'reference'"):
        choose(Q, K, V, schedule((3, 0)), PLAIN, "torch_flash")


def test_a_library_that_is_not_here_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KERNELS", {"rainbow": "rainbow_attn:Rainbow"} | module.KERNELS)
    assert choose(Q, K, V, schedule(), PLAIN._replace(softmax_scale=0.5)).name == "torch_flash"
    expected = "it cannot be imported: No module named 'rainbow_attn'. Choose 'torch_flash', or no name at all."
    with pytest.raises(UnsupportedError, match=re.escape(expected)):
        choose(Q, K, V, schedule(), PLAIN, "rainbow")


NEWEST = """
import torch
from ringattn_core.kernels.limits import Limits
from ringattn_core.kernels.reference import Reference


class Newest(Reference):
    name = "newest"
    speed = 0.9, 0.8

    def supports(self, launch, q, kv, options):
        return Limits(generation=None, dtypes=(torch.float32, torch.float64)).why_unsupported(q, kv.v, options)
"""


def test_a_new_kernel_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is then chosen, named in errors, counted as installed, and computes for users."""
    (tmp_path / "newest_kernel.py").write_text(NEWEST, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "KERNELS", {"newest": "newest_kernel:Newest"} | module.KERNELS)
    kernel = choose(Q, K, V, schedule((1, 0)), PLAIN)
    assert kernel.name == "newest" and kernel.speed == (0.9, 0.8)
    assert module.kernel_named("newest") is kernel
    with pytest.raises(UnsupportedError, match="'newest' cannot compute this: it takes float32 and float64, not"):
        choose(Q.bfloat16(), K.bfloat16(), V.bfloat16(), schedule((1, 0)), PLAIN, "newest")
    assert module.installed.__wrapped__()[0] == "newest"
    problem = Problem((0, 9, 20), window=(-1, 0))
    assert_exact(run(2, lambda comm: problem.solve_on(comm, kernel=kernel)), problem.solve())


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"There is no kernel 'torch_flsh'.*Did you mean 'torch_flash'"):
        choose(Q, K, V, schedule(), PLAIN, "torch_flsh")


def test_it_asks_once_for_every_kind_of_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KERNELS", {"counting": f"{__name__}:Counting"})
    module._kernel.cache_clear()
    planned = plan(contiguous, ring, (0, 17), (0, 17), 1, 2)
    kernel = first = choose(Q, K, V, planned, PLAIN)
    assert isinstance(kernel, Counting)
    asked = kernel.asked
    assert asked >= 1
    # Other tensors of the same kind, and options that differ in numbers only.
    assert choose(Q.clone(), K.clone(), V.clone(), planned, PLAIN._replace(softmax_scale=3.0, seed=1)) is first
    assert kernel.asked == asked
    for q, k, v, options in (
        (Q.double(), K.double(), V.double(), PLAIN),
        (Q[:, :2], K, V, PLAIN),
        (Q, K, V[..., :8], PLAIN),
        (Q, K, V, PLAIN._replace(softcap=1.0)),
        (Q, K, V, PLAIN._replace(deterministic=True)),
        (Q, K, V, PLAIN._replace(alibi_slopes=torch.ones(4))),
        (Q, K, V, PLAIN._replace(dropout_p=0.5)),
    ):
        choose(q, k, v, planned, options)
        assert kernel.asked > asked
        asked = kernel.asked


def test_it_asks_again_where_pytorch_is_told_to_be_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own FlashAttention is, only where PyTorch is told so."""
    before = module.question(Q, K, V, PLAIN, None, False)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert module.question(Q, K, V, PLAIN, None, False) != before


def test_asking_again_is_a_look_up() -> None:
    """The same work for a schedule of many launches as for one: hundreds of instructions, some ten microseconds."""
    borders = tuple(range(0, 33, 2))
    for planned in (schedule(), plan(striped, ring, borders, borders, 0, 4, window=(3, 1))):
        choose(Q, K, V, planned, PLAIN)
        assert instructions(lambda planned=planned: choose(Q, K, V, planned, PLAIN)) < 400


def test_what_is_remembered_goes_with_the_schedule() -> None:
    before = len(module._CHOSEN)
    sharding = Sharding(contiguous, (0, 9), 2)
    planned = planner._planned.__wrapped__(sharding, sharding, ring, 0, FULL, 0)
    choose(Q, K, V, planned, PLAIN)
    assert len(module._CHOSEN) == before + 1
    del planned
    gc.collect()
    assert len(module._CHOSEN) == before


def test_kernels_are_imported_when_they_are_considered() -> None:
    source = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    above = [statement.module for statement in source.body if isinstance(statement, ast.ImportFrom)]
    assert "ringattn_core.run.kernel" in above
    assert not [name for name in above if name and name.startswith("ringattn_core.kernels")]
