"""What all tests share: one thread for each rank's arithmetic, and generated cases that are always the same ones."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

# New cases are for those who ask for them (see CONTRIBUTING.md): a change is not to fail by what another one broke.
settings.register_profile("ringattn", derandomize="RINGATTN_FUZZ" not in os.environ, deadline=None)
settings.load_profile("ringattn")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    # The ranks and the workers share the cores already.
    torch.set_num_threads(1)
