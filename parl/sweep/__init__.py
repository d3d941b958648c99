"""Sweeps: grids of runs over seeds and variants, and what they show together."""
