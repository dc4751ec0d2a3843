"""Exact attention over sequences that are sharded across devices: the functions that users call."""
