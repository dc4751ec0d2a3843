"""Backends: each implements `Communicator` over one way to move bytes, and is imported only when it is asked for."""
