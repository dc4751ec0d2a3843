"""Runs a schedule: the executor, what it asks of kernels and transports, and the sums of their results."""
