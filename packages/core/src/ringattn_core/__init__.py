"""The math and the schedule of exact attention over a sharded sequence; depends on nothing but torch."""

__version__ = "0.1.0"
