"""Groups of heads: each is a pass of its share of the heads, and together they are the whole attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from problem import Problem, assert_exact
from ringattn_comms.backends.threads import run
from ringattn_core.kernels.reference import Reference
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.transport import KV, LocalTransport, Transport


class Shapes(Reference):
    """The reference kernel, which takes a note of the shapes of q and k."""

    def __init__(self) -> None:
        self.shapes = list[tuple[torch.Size, torch.Size]]()

    def forward(self, q: Tensor, keys: KV, *rest: Any) -> Any:
        self.shapes.append((q.shape, keys.k.shape))
        return super().forward(q, keys, *rest)


def test_head_groups_give_the_kernel_a_share_of_the_heads() -> None:
    """6 query and 3 kv heads in 2 groups: the first holds one kv head, the second two."""
    problem, kernel = Problem((0, 8), num_heads=6, num_kv_heads=3), Shapes()
    (part,) = run(1, lambda comm: problem.solve_on(comm, head_groups=2, kernel=kernel))
    assert_exact([part], problem.solve())
    assert kernel.shapes == [((8, 2, 4), (8, 1, 4)), ((8, 4, 4), (8, 2, 4))]


@pytest.mark.parametrize("alibi", ["head", "token"])
@pytest.mark.parametrize("route", ["ring", "waves(2)", "gather"])
def test_every_head_has_its_own_sink_slope_and_gradient(route: str, alibi: str) -> None:
    problem = Problem((0, 7, 24), window=(-1, 0), num_heads=6, num_kv_heads=3, sinks=True, alibi=alibi)
    for groups in (1, 2, 3):
        assert_exact(
            run(3, lambda comm, a=groups: problem.solve_on(comm, "zigzag", route, head_groups=a)), problem.solve()
        )


@pytest.mark.parametrize("route", ["ring", "gather"])
def test_a_dropout_mask_is_that_of_one_group(route: str) -> None:
    """Forward and backward: every group gets the random states of its launches back, and its own heads' masks."""
    problem = Problem((0, 7, 24), window=(-1, 0), num_heads=6, num_kv_heads=3, dropout_p=0.3)
    assert_exact(run(2, lambda comm: problem.solve_on(comm, "zigzag", route, head_groups=3)), problem.solve())


def test_the_transport_of_a_group_is_made_before_the_pass_of_the_group_before() -> None:
    """So that its first keys may travel meanwhile; never more than one ahead."""
    notes = list[str]()

    class Noted(LocalTransport):
        def __init__(self, schedule: Schedule, kv: KV) -> None:
            super().__init__(schedule, kv)
            self.number = sum(note.startswith("made") for note in notes)
            notes.append(f"made {self.number}")

        def __iter__(self) -> Any:
            notes.append(f"run {self.number}")
            return super().__iter__()

    def link(comm: object, schedule: Schedule, kv: KV) -> Transport:
        return Noted(schedule, kv)

    Problem((0, 8), num_heads=3, num_kv_heads=3).solve_on(*run(1, lambda comm: comm), head_groups=3, link=link)
    forward = ["made 0", "made 1", "run 0", "made 2", "run 1", "run 2"]
    assert notes[:6] == forward and len(notes) == 12


def test_more_head_groups_than_kv_heads() -> None:
    problem = Problem((0, 4), num_kv_heads=1)
    for groups in (0, 2):
        with pytest.raises(ValueError, match=f"head_groups is {groups} and there are 1 kv heads"):
            run(2, lambda comm, a=groups: problem.solve_on(comm, head_groups=a))
