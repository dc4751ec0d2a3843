"""Every architecture on several ranks: the loss, the logits and every gradient of one process."""

from __future__ import annotations

import pytest

import processes
from adapters.hf import compare
from adapters.hf.models import ARCHITECTURES, build


@pytest.mark.parametrize("size", [2, 4])
def test_loss_and_gradients(size: int) -> None:
    for found in processes.run(size, every_architecture, timeout=180):
        assert found.keys() == ARCHITECTURES.keys()
        assert all(error <= 1e-5 for errors in found.values() for error in errors.values()), found


def every_architecture() -> dict[str, compare.Errors]:
    """21 tokens divide by neither 2 nor 4, and windows of 5 begin and end on other ranks."""
    ids = compare.tokens()
    return {name: compare.errors(build(name), {"input_ids": ids, "labels": ids}) for name in ARCHITECTURES}
