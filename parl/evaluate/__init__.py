"""Evaluation of policies: running, scoring, comparison."""
