"""Attacks and faults by area: each module lists its cases, for the tests and ``benchmarks/attacks.py``."""
