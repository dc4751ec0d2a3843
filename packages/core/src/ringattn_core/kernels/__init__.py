"""Kernels: one short wrapper each, all with the same three methods; `choose` picks."""
