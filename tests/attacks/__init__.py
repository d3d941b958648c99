"""Attacks and mishaps by class: each module lists its cases once, for the tests and for ``benchmarks/attacks.py``."""
