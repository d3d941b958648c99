"""Mistakes that somebody could make, by area, each with the tests that must notice it (``tests/mutants.py``)."""
