"""What all tests share: one thread for each rank's arithmetic, as the ranks and the workers share the cores already."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
