"""How keys and values travel between devices: communicators, their backends, and the transports built on them."""

from ringattn_comms.communicator import Communicator, Solo, Work
from ringattn_comms.connect import communicator, connect
from ringattn_comms.pull import Pull
from ringattn_comms.ring import Ring
from ringattn_comms.waves import Waves
from ringattn_comms.window import Window, Windows

__all__ = ["Communicator", "Pull", "Ring", "Solo", "Waves", "Window", "Windows", "Work", "communicator", "connect"]
