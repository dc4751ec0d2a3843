"""What all tests share: one thread for each rank's arithmetic, and generated cases that are always the same ones."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import forkserver

import pytest
import torch
from hypothesis import settings

# New cases are for those who ask for them (see CONTRIBUTING.md): a change is not to fail by what another one broke.
settings.register_profile("ringattn", derandomize="RINGATTN_FUZZ" not in os.environ, deadline=None)
settings.load_profile("ringattn")


def pytest_collection_finish() -> None:
    """Where a test has models, start the server that ranks are forked from with all that each would import."""
    if "adapters.hf.models" in sys.modules:
        multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "ringattn", "adapters.hf.preloaded"])
        with pytest.MonkeyPatch.context() as patch:
            # The server is not told of sys.path, and would leave out what it cannot import without a word.
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
            forkserver.ensure_running()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    # The ranks and the workers share the cores already.
    torch.set_num_threads(1)
