"""Scorers of published benchmarks: pure functions of a task's row and a reply."""
