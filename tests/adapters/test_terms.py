"""What ranks compare before a pass is the same for the same arguments, however they are written."""

from __future__ import annotations

import torch

from ringattn import ContextParallel
from ringattn.call import CallSpec
from ringattn_comms.communicator import SingleRank
from ringattn_comms.header import encoded


def test_numbers_of_other_types_are_the_same_terms() -> None:
    said, q = set[bytes](), torch.zeros(8, 2, 8)
    for scale, softcap, deterministic in ((1.0, 0.0, True), (1, 0, 1), (True, False, True)):
        encoded.cache_clear()  # as on another rank, which has not been asked for an equal number of another type
        spec = CallSpec(ContextParallel(SingleRank()), True, (-1, -1), softcap, scale, 0.0, deterministic, False)
        said.add(spec.prepare(q, q, q).terms)
    assert len(said) == 1
