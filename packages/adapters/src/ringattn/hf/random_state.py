"""Random numbers that all ranks of a group draw alike."""

from __future__ import annotations

import torch

from ringattn.agree import turn
from ringattn_comms.communicator import Communicator
from ringattn_comms.header import encoded


def share_random_state(comm: Communicator, device: torch.device) -> None:
    """Every rank goes on with the random numbers of the first, on its CPU and on `device`."""
    generators = [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]
    for generator in generators:
        state = generator.get_rng_state()
        with turn(comm, "exchange of random states", encoded(()), device):
            first = comm.all_gather(state.to(device)).wait()[0]
        generator.set_rng_state(first.to(state.device))
