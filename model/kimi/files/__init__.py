"""Checkpoints and published configurations of the family."""
