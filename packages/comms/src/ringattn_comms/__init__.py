"""How keys and values travel between devices: communicators, their backends, and the transports built on them."""

from ringattn_comms.communicator import Communicator, SingleRank, Work
from ringattn_comms.connect import communicator, connect
from ringattn_comms.one_sided import OneSided
from ringattn_comms.ring import Ring
from ringattn_comms.shared_buffer import SharedBuffer, SharedBuffers
from ringattn_comms.waves import Waves

__all__ = [
    "Communicator",
    "OneSided",
    "Ring",
    "SharedBuffer",
    "SharedBuffers",
    "SingleRank",
    "Waves",
    "Work",
    "communicator",
    "connect",
]
